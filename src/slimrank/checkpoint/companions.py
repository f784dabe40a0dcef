"""The files beside the weights: tokenizer, generation config, chat template, licence."""

import shutil
from pathlib import Path
from typing import Any

GENERATION = "generation_config.json"
_SUFFIXES = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".py", ".md"}
_OURS = {"config.json", "README.md"}
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
        if file.is_file() and (wanted or licence):
            shutil.copyfile(file, folder / file.name)
    for name in _FOLDERS:
        if (source / name).is_dir():
            shutil.copytree(source / name, folder / name)


def save_companions(source: Path | None, tokenizer: Any, folder: Path) -> None:
    """Take the companions from `source`; a tokenizer is written out only where `source` brings none."""
    if source is not None:
        copy_companions(source, folder)
    if tokenizer is not None and not (folder / "tokenizer_config.json").is_file():
        tokenizer.save_pretrained(folder)
