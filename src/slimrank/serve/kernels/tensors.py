"""What the kernels may read: the tensors that they are given, checked, and how far a row reaches."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.forms.quantized import BITS, groups_of
from slimrank.numerics.packing import row_bytes
from slimrank.serve.kernels.blocks import MOST

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def check_tensors(x: Tensor, floats: Sequence[Tensor | None], numbers: Sequence[Tensor | None]) -> None:
    """Raise a SlimrankError where the kernels would read what isn't there."""
    if x.dtype not in DTYPES or any(t is not None and t.dtype != x.dtype for t in floats):
        kinds = sorted({str(t.dtype).removeprefix("torch.") for t in (x, *floats) if t is not None})
        raise SlimrankError(f"few_tokens takes bfloat16, float16 or float32, one for all, not {' and '.join(kinds)}.")
    if any(t is not None and t.device != x.device for t in (*floats, *numbers)):
        devices = sorted({str(t.device) for t in (x, *floats, *numbers) if t is not None})
        raise SlimrankError(f"few_tokens takes tensors of one device, not of {' and '.join(devices)}.")
    if x.numel() > MOST * x.shape[-1]:
        raise SlimrankError(f"few_tokens takes up to {MOST} tokens, not {x.numel() // x.shape[-1]}.")
    if not x.is_cuda and not _interpreted():
        raise SlimrankError(f"few_tokens runs on CUDA devices, not on {x.device}.")


def check_numbers(
    matrices: Sequence[Tensor | None], scales: Sequence[Tensor | None], columns: Sequence[int], bits: int, group: int
) -> None:
    """Raise a SlimrankError where a matrix of so many columns isn't whole numbers of `bits` bits with scales."""
    if bits not in BITS:
        raise SlimrankError(f"few_tokens takes whole numbers of 8, 4, 3 or 2 bits, not {bits}.")
    kind = torch.int8 if bits == 8 else torch.uint8
    for matrix, scale, width in zip(matrices, scales, columns, strict=True):
        if matrix is None:
            continue
        wanted = (len(matrix), row_bytes(width, bits)), (len(matrix), groups_of(width, group or None))
        given = tuple(matrix.shape), None if scale is None else tuple(scale.shape)
        if given != wanted or matrix.dtype != kind:
            raise SlimrankError(
                f"few_tokens takes rows of {width} numbers of {bits} bits as {kind} {wanted[0]} with scales "
                f"{wanted[1]}, not as {matrix.dtype} {given[0]} with {given[1] or 'none'}."
            )


def _interpreted() -> bool:
    import triton

    return bool(triton.knobs.runtime.interpret)


def readable(matrix: Tensor, columns: int, bits: int) -> int:
    """Columns up to which a row may be read: its own, up to a multiple of 16 where there is memory, for wide loads.

    Packed rows are filled up to a multiple of 32.
    """
    wide = -(-columns // 16) * 16
    if bits not in (0, 8):
        return wide
    rows = len(matrix)
    end = matrix.storage_offset() + (rows - 1) * matrix.stride(0) + wide
    fits = matrix.stride(0) % 16 == 0 and wide <= matrix.stride(0)
    return wide if fits and end * matrix.itemsize <= matrix.untyped_storage().nbytes() else columns


def rows_first(matrix: Tensor, bits: int) -> Tensor:
    """The matrix with a row's numbers side by side, and packed rows so too."""
    alone = matrix.stride(1) == 1 or matrix.shape[1] == 1
    return matrix if (alone if bits in (0, 8) else matrix.is_contiguous()) else matrix.contiguous()
