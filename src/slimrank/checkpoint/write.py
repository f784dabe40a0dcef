"""Write a compressed model as a Hugging Face directory."""

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from slimrank.checkpoint.companions import GENERATION, same_generation, save_companions
from slimrank.checkpoint.config import finish_config
from slimrank.checkpoint.files import atomic_directory, write_text
from slimrank.checkpoint.manifest import MANIFEST, manifest
from slimrank.checkpoint.register import describe
from slimrank.errors import SlimrankError
from slimrank.forms import compressed_layers
from slimrank.store.disk import disk_errors
from slimrank.store.source import Source, has_weights
from slimrank.store.stored import as_stored, original_of


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
    trial: Callable[[Path], None] | None = None,
) -> None:
    """Write `model`, whose modules named in `layers` are forms, to the folder `out`: the whole of it or nothing.

    The weights are stored in `dtype`, tensors of another dtype than the model's (integers, parts kept in float32) in
    their own, and those that are still the dense model's as `source` has them; `tensors` are the weights as they are to
    be stored, where the model's own are not in memory. `source` is the dense model's local folder, whose licence and
    other files are copied, also its tokenizer and generation config where `tokenizer` and the model's own are the same.
    `extras` maps relative paths to texts. The model's config gains the `quantization_config` that the folder's has.
    `trial` is called with the finished folder before it becomes `out`; what it raises leaves `out` as it was. Raises
    UsageError when `out` is not empty and `overwrite` is false, and SlimrankError when `layers` isn't what the model
    holds, a tensor isn't finite as it is to be stored, or the disk fills.
    """
    _describe(model, layers)
    tensors = _stored(model, dtype, source) if tensors is None else dict(tensors)
    with atomic_directory(out, overwrite=overwrite, needed_bytes=_bytes(tensors)) as folder:
        _save(model, folder, source, state_dict=tensors, max_shard_size=max_shard_size)
        finish_config(folder / "config.json", dtype, source, model.config.to_dict())
        save_companions(source, tokenizer, folder)
        for name, text in {**(extras or {}), MANIFEST: manifest(folder)}.items():
            _write_inside(folder, name, text)
        if trial is not None:
            trial(folder)


def require_savable(model: PreTrainedModel, source: Path | None) -> None:
    """Raise a SlimrankError where transformers refuses to save the model, such as for its settings.

    source: as for write_checkpoint.
    """
    with tempfile.TemporaryDirectory() as place:
        try:
            _save(model, Path(place), source, state_dict={})
        except Exception as error:  # transformers raises errors of many unrelated types
            if isinstance(error, OSError) and error.errno is not None:  # the system's, of this disk
                with disk_errors(Path(place)):
                    raise
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
            raise SlimrankError(
                f"transformers cannot save this model: {reason}; correct its config.json or generation_config.json."
            ) from error


def _save(model: PreTrainedModel, folder: Path, source: Path | None, **options: Any) -> None:
    """save_pretrained, and generation_config.json as `source` has it where the model has the same settings.

    transformers refuses to save some settings that it loads.
    """
    own: Any = getattr(model, "generation_config", None)
    if not same_generation(own, source):
        model.save_pretrained(folder, **options)
        return
    assert source is not None
    model.generation_config = GenerationConfig()
    try:
        model.save_pretrained(folder, **options)
    finally:
        model.generation_config = own
    shutil.copyfile(source / GENERATION, folder / GENERATION)


def _describe(model: PreTrainedModel, layers: dict[str, dict[str, Any]]) -> None:
    """Let the model's config say what the model is, as the folder's will."""
    held = compressed_layers(model)
    wrong = sorted(name for name in held.keys() | layers.keys() if held.get(name) != layers.get(name))
    if wrong:
        name = wrong[0]
        raise SlimrankError(
            f"The layer {name} is {held.get(name)} in the model, not {layers.get(name)}; apply the plan first."
        )
    describe(model)


def _stored(model: PreTrainedModel, dtype: torch.dtype, source: Path | None) -> dict[str, Tensor]:
    """The model's tensors as they are written; tied ones stay one tensor, which save_pretrained stores once."""
    originals = Source(source) if source is not None and has_weights(source) else None
    made: dict[tuple[Any, ...], Tensor] = {}
    found = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride())
        if key not in made:
            original = original_of(originals, name, model.base_model_prefix)
            made[key] = as_stored(name, tensor, original, model.dtype, dtype)
        found[name] = made[key]
    return found


def _bytes(tensors: Mapping[str, Tensor]) -> int:
    return sum({(tensor.device, tensor.data_ptr()): tensor.nbytes for tensor in tensors.values()}.values())


def _write_inside(folder: Path, name: str, text: str) -> None:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise SlimrankError(f"The extra file {name} lies outside the checkpoint; give a relative path.")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
