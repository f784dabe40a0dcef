"""The files beside the weights: tokenizer, generation config, chat template, licence."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

GENERATION = "generation_config.json"
_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", ".md"}
_OURS = {"config.json", "README.md"}
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_OUTWARD = ("transformers_version", "_from_model_config")
_LICENCES = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")
_FOLDERS = ("additional_chat_templates",)
PATTERNS = [
    *(f"*{suffix}" for suffix in sorted(_SUFFIXES - {".py"})),
    *(f"{name}*" for name in _LICENCES),
    *(f"{name}/*" for name in _FOLDERS),
]
"""Of a hub model's files beside its weights."""


def copy_companions(source: Path, folder: Path) -> None:
    """Copy what belongs to the model in `source`, byte for byte; weights and their indices stay behind."""
    for file in source.iterdir():
        licence = file.stem.upper() in _LICENCES
        wanted = file.suffix in _SUFFIXES and file.name not in _OURS and not file.name.endswith(".index.json")
        if file.is_file() and (file.name != GENERATION or not (folder / GENERATION).exists()) and (wanted or licence):
            shutil.copyfile(file, folder / file.name)
    for name in _FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)


def save_companions(source: Path | None, tokenizer: Any, folder: Path) -> None:
    """Take the companions from `source`; a tokenizer that is not as `source` has it is written out instead."""
    if source is not None:
        copy_companions(source, folder)
    if tokenizer is None:
        return
    with tempfile.TemporaryDirectory() as place:
        ours, theirs = Path(place, "ours"), Path(place, "theirs")
        ours.mkdir()
        tokenizer.save_pretrained(ours)
        if source is not None and same(ours, saved_again(source, theirs)):
            return
        for name in {*names(ours), *names(theirs), *_TEMPLATES}:
            (folder / name).unlink(missing_ok=True)
        shutil.copytree(ours, folder, dirs_exist_ok=True)


def saved_again(source: Path, folder: Path) -> Path:
    """The tokenizer of `source` as transformers writes it; nothing where it can't be read."""
    with suppress(Exception):  # the libraries raise errors of many unrelated types
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    return folder


def names(folder: Path) -> set[str]:
    """The files in a folder, at any depth."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files."""
    return names(one) == names(other) and all((one / n).read_bytes() == (other / n).read_bytes() for n in names(one))


def same_generation(generation: GenerationConfig | None, source: Path | None) -> bool:
    """Whether a model's generation settings are what the folder `source` says."""
    if source is None or generation is None or not (source / GENERATION).is_file():
        return False
    theirs = GenerationConfig.from_pretrained(source)
    ours, other = ({k: v for k, v in one.to_dict().items() if k not in _OUTWARD} for one in (generation, theirs))
    return ours == other
