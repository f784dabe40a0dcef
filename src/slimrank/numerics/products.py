"""Products with whole numbers of few bits on a CPU, by torch's own kernels for few rows and in pieces for many."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear, pad

from slimrank.numerics.packing import unpack

FEW = 16
"""The most rows of an input for which the kernels are faster than a product with the numbers made floats."""

PIECE = 256
"""Rows of a matrix that are made floats at a time, so that they stay in a cache."""

GROUPS = (256, 128, 64, 32)
"""Inputs that share a scale in torch's kernel for 4 bits."""

ROWS = 16
"""The kernels take a multiple of so many outputs."""

ALIGNED = 64
"""Bytes of which an address is a multiple where an allocation begins."""


@dataclass(frozen=True)
class FourBits:
    """A matrix (rows, columns) as torch's kernel for 4 bits reads it.

    weight: what torch packed; scales: (columns / group, rows, 2), each group's scale and the value of its 8; planes: 2
    where the matrix has 8 bits and its high and its low halves lie side by side.
    """

    weight: Tensor
    scales: Tensor
    group: int
    rows: int
    columns: int
    planes: int


def kernel_group(columns: int, group: int | None) -> int | None:
    """The kernel's group where scales are of `group` inputs (None: a whole row); None where it has none that fits."""
    width = -(-columns // GROUPS[-1]) * GROUPS[-1] if group is None or group >= columns else group
    return next((own for own in GROUPS if width % own == 0), None)


def four_bits(numbers: Tensor, scale: Tensor, bits: int, group: int | None) -> FourBits | None:
    """q (rows, columns) int8 of `bits` bits with scales (rows, groups) for the kernel; None where its groups don't fit.

    q = 16 h + l in 8 bits, with h and l of 4 bits each.
    """
    (rows, columns), own = numbers.shape, kernel_group(numbers.shape[1], group)
    if own is None or not numbers.numel():
        return None
    numbers = pad(numbers, (0, -columns % own, 0, -rows % ROWS)).int()
    starts = torch.arange(0, numbers.shape[1], own, device=numbers.device)
    wide = scale if group is None or scale.shape[1] == 1 else scale.index_select(1, starts // group)
    wide = pad(wide.expand(rows, len(starts)), (0, 0, 0, -rows % ROWS)).T
    if bits == 8:
        halves = torch.cat([(numbers >> 4) + 8, numbers & 15], dim=1)
        scales = torch.cat([torch.stack([16 * wide, 0 * wide], -1), torch.stack([wide, 8 * wide], -1)])
    else:
        halves, scales = numbers + 8, torch.stack([wide, 0 * wide], -1)
    packed = torch._convert_weight_to_int4pack_for_cpu(halves.contiguous(), 1)
    return FourBits(packed, scales.contiguous(), own, rows, columns, 2 if bits == 8 else 1)


def four_bit_product(x: Tensor, matrix: FourBits) -> Tensor:
    """x (m, columns) times the matrix transposed: (m, rows); x in the dtype of the scales."""
    x = pad(x, (0, -matrix.columns % matrix.group))
    x = torch.cat([x, x], dim=1) if matrix.planes == 2 else aligned(x)
    y: Tensor = torch._weight_int4pack_mm_for_cpu(x, matrix.weight, matrix.group, matrix.scales)
    return y[:, : matrix.rows]


def takes_eight_bits(rows: int, columns: int) -> bool:
    """Whether torch's kernel for 8 bits with a scale a row takes a matrix of this shape; it checks nothing itself."""
    return rows % ROWS == 0 and columns % GROUPS[-1] == 0 and columns > 0


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous, where it begins as an allocation does: the kernels load that way and check nothing."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % ALIGNED == 0 else tensor.clone()


def eight_bit_product(x: Tensor, numbers: Tensor, scale: Tensor) -> Tensor:
    """x (m, n) times q s transposed, q (rows, n) int8 and s (rows,): (m, rows)."""
    y: Tensor = torch._weight_int8pack_mm(aligned(x), aligned(numbers), scale)
    return y


def product_in_pieces(x: Tensor, rows: int, floats: Callable[[int, int], Tensor], piece: int = PIECE) -> Tensor:
    """x (m, n) times a matrix (rows, n) transposed, of which floats(start, end) makes `piece` rows at a time."""
    if rows <= piece:
        return linear(x, floats(0, rows))
    y = x.new_empty(len(x), rows)
    for start in range(0, rows, piece):
        end = min(start + piece, rows)
        y[:, start:end] = linear(x, floats(start, end))
    return y


def stored_product(x: Tensor, weight: Tensor, scale: Tensor, bits: int, group: int | None) -> Tensor:
    """x (m, n) times q s (rows, n) transposed: (m, rows); q in `weight` as packing.pack stores it, s (rows, groups).

    Nothing is kept beside what is stored: torch's kernel for 8 bits reads it, elsewhere numbers are made floats, on a
    CPU some rows at a time. x has the dtype of s.
    """
    rows, whole, on_cpu = len(weight), bits == 8 and scale.shape[1] == 1, x.device.type == "cpu"
    if whole and on_cpu and 0 < len(x) <= FEW and takes_eight_bits(rows, x.shape[1]):
        return eight_bit_product(x, weight, scale[:, 0].contiguous())
    piece = PIECE if on_cpu else rows
    if whole and x.dtype != torch.float16:  # which could overflow before the scale
        return product_in_pieces(x, rows, lambda start, end: weight[start:end].to(x.dtype), piece).mul_(scale[:, 0])

    def floats(start: int, end: int) -> Tensor:
        own = scale[start:end]
        if bits == 4 and on_cpu and scale.dtype in HALVES:
            return scaled(floats_of_halves(weight[start:end], scale.dtype)[:, : x.shape[1]], own, group)
        return dequantize(unpack(weight[start:end], bits, x.shape[1]), own, group)

    return product_in_pieces(x, rows, floats, piece)


def dequantize(numbers: Tensor, scale: Tensor, group: int | None) -> Tensor:
    """q s (out, in), in the dtype of s, from q (out, in) and s (out, ceil(in / group))."""
    return scaled(numbers.to(scale.dtype), scale, group)


def scaled(floats: Tensor, scale: Tensor, group: int | None) -> Tensor:
    """As dequantize, from q as floats."""
    columns = floats.shape[1]
    if scale.shape[1] == 1 or group is None:
        return floats * scale
    if columns % group == 0:
        return (floats.unflatten(1, (-1, group)) * scale[..., None]).flatten(1)
    return floats * scale.repeat_interleave(group, dim=1)[:, :columns]


def pairs_of(dtype: torch.dtype) -> Tensor:
    """For every byte (256,) the two numbers of 4 bits in it, minus 8, as one of an integer dtype twice as wide."""
    byte = torch.arange(256)
    pairs = torch.stack([(byte & 15) - 8, (byte >> 4) - 8], dim=-1).to(dtype)
    return pairs.view({2: torch.int32, 4: torch.int64}[dtype.itemsize]).flatten()


HALVES = {dtype: pairs_of(dtype) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
"""`pairs_of` every dtype that floats_of_halves makes."""


def floats_of_halves(packed: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of 4 bits, packed (rows, bytes) as numerics.packing does on the CPU, as floats (rows, 2 bytes)."""
    return HALVES[dtype].index_select(0, packed.flatten().int()).view(dtype).view(len(packed), -1)
