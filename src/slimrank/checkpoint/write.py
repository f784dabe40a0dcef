"""Write a compressed model as a Hugging Face directory."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from slimrank.checkpoint.companions import GENERATION, save_companions
from slimrank.checkpoint.config import finish_config
from slimrank.checkpoint.files import atomic_directory, write_text
from slimrank.checkpoint.manifest import MANIFEST, manifest
from slimrank.checkpoint.schema import quantization_config
from slimrank.errors import SlimrankError
from slimrank.forms import compressed_layers


def write_checkpoint(
    model: PreTrainedModel,
    out: Path,
    *,
    layers: dict[str, dict[str, Any]],
    dtype: torch.dtype,
    source: Path | None = None,
    tokenizer: Any = None,
    extras: Mapping[str, str] | None = None,
    max_shard_size: str = "5GB",
    overwrite: bool = False,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `model`, whose modules named in `layers` are forms, to the folder `out`: the whole of it or nothing.

    The weights are stored in `dtype`, tensors of another dtype than the model's (integers, parts kept in float32) in
    their own; `tensors` are the weights as they are to be stored, where the model's own are not in memory. `source` is
    the dense model's local folder, whose tokenizer, generation config, chat template and licence are copied;
    `tokenizer` is saved where `source` has none. `extras` maps relative paths to texts. The model's config gains the
    `quantization_config` that the folder's has. Raises UsageError when `out` is not empty and `overwrite` is false, and
    SlimrankError when `layers` isn't what the model holds or the disk fills.
    """
    _describe(model, layers)
    tensors = _cast(model.state_dict(), model.dtype, dtype) if tensors is None else dict(tensors)
    with atomic_directory(out, overwrite=overwrite, needed_bytes=_bytes(tensors)) as folder:
        with _generation_config_of(model, source):
            model.save_pretrained(folder, state_dict=tensors, max_shard_size=max_shard_size)
        finish_config(folder / "config.json", dtype, source)
        save_companions(source, tokenizer, folder)
        for name, text in {**(extras or {}), MANIFEST: manifest(folder)}.items():
            _write_inside(folder, name, text)


def _describe(model: PreTrainedModel, layers: dict[str, dict[str, Any]]) -> None:
    """Let the model's config say what the model is, as the folder's will."""
    held = compressed_layers(model)
    wrong = sorted(name for name in held.keys() | layers.keys() if held.get(name) != layers.get(name))
    if wrong:
        name = wrong[0]
        raise SlimrankError(
            f"The layer {name} is {held.get(name)} in the model, not {layers.get(name)}; apply the plan first."
        )
    if layers:
        model.config.quantization_config = quantization_config(layers)
    elif hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def _cast(tensors: Mapping[str, Tensor], old: torch.dtype, new: torch.dtype) -> dict[str, Tensor]:
    """Cast what is in dtype `old`; tied tensors stay one tensor, which save_pretrained stores once."""
    if old == new:
        return dict(tensors)
    made: dict[tuple[Any, ...], Tensor] = {}

    def cast(tensor: Tensor) -> Tensor:
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        return made.setdefault(key, tensor.to(new)) if tensor.dtype == old else tensor

    return {name: cast(tensor) for name, tensor in tensors.items()}


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum({(tensor.device, tensor.data_ptr()): tensor.nbytes for tensor in tensors.values()}.values())


@contextmanager
def _generation_config_of(model: PreTrainedModel, source: Path | None) -> Iterator[None]:
    """Where `source` brings its own generation config, hide the model's: save_pretrained refuses some that load."""
    if source is None or not (source / GENERATION).is_file():
        yield
        return
    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own


def _write_inside(folder: Path, name: str, text: str) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise SlimrankError(f"The extra file {name} lies outside the checkpoint; give a relative path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
