"""A tensor as it is written: what the run left alone keeps its bits, what it made is cast and stays finite."""

import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.store.source import Source


def as_stored(name: str, tensor: Tensor, original: Tensor | None, computed: torch.dtype, stored: torch.dtype) -> Tensor:
    """The tensor to write: the original, where `tensor` is only that cast to what was computed in, else a cast one.

    computed: the model's dtype in memory, whose tensors are cast to `stored`; others keep theirs.

    Raises:
        SlimrankError: if it holds NaN or Inf, or would in the dtype that it is written in.
    """
    if not tensor.is_floating_point():
        return tensor
    if original is not None and original.shape == tensor.shape and original.is_floating_point():
        if torch.equal(original.to(tensor.dtype), tensor.cpu()):
            return original
        stored = original.dtype
    cast = tensor.to(stored) if tensor.dtype == computed else tensor
    if not cast.isfinite().all():
        if not tensor.isfinite().all():
            raise SlimrankError(f"{name} became NaN or Inf in this run, so nothing is written: try --dtype float32.")
        raise SlimrankError(
            f"{name} holds {tensor.abs().max().item():.3g}, which {str(cast.dtype).removeprefix('torch.')} can't hold: "
            "give the dense model in bfloat16 or float32."
        )
    return cast


def original_of(source: Source | None, name: str, base: str) -> Tensor | None:
    """The tensor of that name in the dense model's checkpoint, with or without the base model's prefix."""
    keys = () if source is None else [key for key in (name, name.removeprefix(f"{base}.")) if key in source]
    return source.get(keys[0]) if source is not None and keys else None
