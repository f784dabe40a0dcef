"""A GGUF file's model and tokenizer, by transformers, as if they came from a Hugging Face directory."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from slimrank.errors import MissingLibrary, SlimrankError
from slimrank.model.gguf.header import Header, read_header

LIBRARIES = ("gguf", "sentencepiece", "google.protobuf")
ROTARY = "rope_f"
"""How the names of tensors begin that scale rotary frequencies; transformers passes over them without a word."""
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
LEFT = ("hf_quantizer", "is_quantized", "quantization_method")


def load_gguf(path: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, Header]:
    """The model dequantised in `dtype`, its tokenizer, and what the file says of itself.

    Raises:
        MissingLibrary: without the libraries of the extra gguf.
        SlimrankError: if the file is not one whole model, or not one that transformers makes a causal LM of.
    """
    for library in LIBRARIES:
        if not installed(library):
            raise MissingLibrary(f"MODEL {path} needs {library}: run pip install 'slimrank[gguf]'.")
    from slimrank.model.gguf.faster import faster

    header = read_header(path)
    _require_no_scaled_frequencies(path, header)
    with _own_folder(path) as file, _unreadable(path, header):
        with faster(file, header, vocabulary=True):
            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        with faster(file, header, vocabulary=False):
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                file.parent, gguf_file=file.name, dtype=dtype, output_loading_info=True
            )
        model, found = loaded
        if found["missing_keys"]:
            raise ValueError(f"it lacks {', '.join(sorted(found['missing_keys'])[:3])}")
        _forget_origin(model, tokenizer, str(path))
        _name_special_tokens(tokenizer, header)
    return model, tokenizer, header


def stored_dtype(header: Header) -> torch.dtype:
    """What a checkpoint of the model is written in: the file's own type, bfloat16 where the file is quantised."""
    return FLOATS.get(header.types[0], torch.bfloat16) if len(header.types) == 1 else torch.bfloat16


def said(header: Header) -> tuple[str, ...]:
    """What the user should know of the file, a sentence each."""
    quantised = [name for name in header.types if name not in FLOATS]
    if not quantised:
        return ()
    return (
        f"The model was quantised as {', '.join(quantised)} in its GGUF file: its dense weights lie on that grid, and "
        "its sizes are what they take in bfloat16.",
    )


def installed(library: str) -> bool:
    """Whether the module can be imported."""
    try:
        return find_spec(library) is not None
    except ModuleNotFoundError:  # of the package that it is in
        return False


def _require_no_scaled_frequencies(path: Path, header: Header) -> None:
    found = [tensor.name for tensor in header.tensors if tensor.name.startswith(ROTARY)]
    if found:
        raise SlimrankError(
            f"MODEL {path} scales its rotary frequencies by {found[0]}, which transformers does not read from a GGUF "
            "file: give the Hugging Face directory instead."
        )


@contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """The file, alone in a folder: what else lies beside it, transformers would take as the model's."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "model.gguf"
        alone.symlink_to(path.resolve())
        yield alone


@contextmanager
def _unreadable(path: Path, header: Header) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries raise errors of many unrelated types
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        raise SlimrankError(
            f"MODEL {path} is of the architecture {header.architecture} and holds {', '.join(header.types)}, of which "
            f"transformers {transformers.__version__} makes no causal language model ({reason}): give its Hugging Face "
            "directory instead."
        ) from error


def _name_special_tokens(tokenizer: Any, header: Header) -> None:
    """As the file has them: transformers 4 takes BOS for EOS."""
    for token, key in SPECIAL.items():
        entry = header.entries.get(f"tokenizer.ggml.{key}_token_id")
        if entry is not None and getattr(tokenizer, f"{token}_token_id") != entry.value:
            setattr(tokenizer, f"{token}_token", tokenizer.convert_ids_to_tokens(int(entry.value)))


def _forget_origin(model: PreTrainedModel, tokenizer: Any, name: str) -> None:
    """Take away what marks the model as quantised, with which it neither saves nor loads as a usual one does."""
    for attribute in LEFT:
        if attribute in vars(model):
            delattr(model, attribute)
    for attribute in ("quantization_config", "_model_name_or_path"):
        if attribute in vars(model.config):
            delattr(model.config, attribute)
    model.config.name_or_path = model.name_or_path = tokenizer.name_or_path = name
    tokenizer.init_kwargs["name_or_path"] = name
