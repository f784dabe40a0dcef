"""Load a model and its tokenizer by hub id, directory, GGUF file or the word demo."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

import slimrank.checkpoint.register  # noqa: F401  (transformers then knows the compressed layers)
from slimrank import demo
from slimrank.checkpoint import find, verify
from slimrank.errors import SlimrankError, UsageError
from slimrank.forms import compressed_layers
from slimrank.model.files import hub_folder, require_readable, require_same_tensors
from slimrank.model.gguf import load_gguf, said, stored_dtype
from slimrank.model.skeleton import in_parts
from slimrank.model.skeleton import stored_dtype as dtype_of
from slimrank.store.source import Source
from slimrank.store.weights import Weights

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class Loaded:
    """A model and where it came from.

    name: as the user gave it; dtype: of its stored weights; directory: None for a hub model and a GGUF file; weights:
    where they are, None for all in memory; notes: what the user should know of it, a sentence each; files: the folder
    of its files on this machine, a hub model's too, None for a GGUF file.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    directory: Path | None
    weights: Weights | None = None
    notes: tuple[str, ...] = ()
    files: Path | None = None

    def __post_init__(self) -> None:
        self.files = self.files or self.directory

    @property
    def hub(self) -> str | None:
        """The model's id on the hub, None for one that came from elsewhere."""
        return None if self.directory or is_gguf(self.name) else self.name


def load(name: str, *, dtype: str = "float32", device: str = "cpu", room: int | None = None) -> Loaded:
    """Load `name` and compute in `dtype` on `device`; a checkpoint of slimrank's loads like any other.

    room: keep the weights on disk and as many decoder blocks in memory as these bytes hold, where the checkpoint's
    tensors are the model's own (in safetensors files, none fused or split on loading).

    Raises:
        UsageError: for a dtype that is not one of DTYPES or a device that torch does not have.
        SlimrankError: if the model or its tokenizer cannot be read.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is unknown: choose one of {', '.join(DTYPES)}.")
    place = demo.model_place(name)
    directory = Path(place) if find(Path(place)).is_dir() else None
    disable_progress_bar()
    if directory is None and is_gguf(name):
        return _from_gguf(name, dtype, _device(device))
    with _unreadable(name):
        if directory:
            verify(directory)
        files = directory or hub_folder(place)
        require_readable(name, files)
        tokenizer = AutoTokenizer.from_pretrained(files, trust_remote_code=False)
        if room is not None:
            found = in_parts(files, DTYPES[dtype], _device(device), room)
            if found is not None:
                return Loaded(name, found[0], tokenizer, found[2], directory, found[1], files=files)
        read: Any = AutoModelForCausalLM.from_pretrained(
            files, dtype=DTYPES[dtype], trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        model, info = read
        require_same_tensors(name, model, info)
        stored = dtype_of(files, Source(files))
    return Loaded(name, _placed(model, DTYPES[dtype], _device(device)), tokenizer, stored, directory, files=files)


def is_gguf(name: str) -> bool:
    """Whether MODEL names a GGUF file, there or not."""
    return name.lower().endswith(".gguf")


def _from_gguf(name: str, dtype: str, device: torch.device) -> Loaded:
    """As load, from a GGUF file: all of it in memory, since its weights are nowhere on disk as the model has them."""
    model, tokenizer, header = load_gguf(Path(name), DTYPES[dtype])
    model = _placed(model, DTYPES[dtype], device)
    return Loaded(name, model, tokenizer, stored_dtype(header), None, notes=said(header))


def _placed(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model on `device`, its weights in `dtype`."""
    buffers = {id(m): {k: m._buffers[k] for k in m._non_persistent_buffers_set} for m in model.modules()}
    torch.nn.Module.to(model, device=device, dtype=dtype)
    for module in model.modules():  # such as rotary frequencies, which are not to be rounded
        module._buffers |= {k: b if b is None else b.to(device) for k, b in buffers[id(module)].items()}
    return model.eval()


@contextmanager
def _unreadable(name: str) -> Iterator[None]:
    try:
        yield
    except SlimrankError:
        raise
    except Exception as error:  # the libraries raise errors of many unrelated types
        reason = " ".join(str(error).split()).rstrip(".")
        raise SlimrankError(f"MODEL {name} cannot be loaded: {reason or type(error).__name__}.") from error


def _device(device: str) -> torch.device:
    """The device, once it has held a number."""
    try:
        number = torch.zeros(1, device=torch.device(device))
        number.item()
        return number.device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} cannot be used: {' '.join(str(error).split()).rstrip('.')}.") from error


def require_dense(loaded: Loaded) -> None:
    """Raise a UsageError if the model is quantized, already compressed or made ready to serve."""
    config = getattr(loaded.model.config, "quantization_config", None)
    if config is not None:
        method = config.get("quant_method") if isinstance(config, dict) else config.quant_method
        raise UsageError(f"MODEL {loaded.name} is already compressed ({method}): give the dense model.")
    if compressed_layers(loaded.model):
        raise UsageError(f"MODEL {loaded.name} was compressed in memory before: load the dense model again.")
    if any(getattr(module, "only_serves", False) for module in loaded.model.modules()):
        raise UsageError(f"MODEL {loaded.name} was optimized: load it again, compress it, and optimize the result.")
