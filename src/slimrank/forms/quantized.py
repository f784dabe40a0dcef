"""Factors stored in 8, 4, 3 or 2 bits with scales."""

from typing import Any

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.numerics.packing import pack, row_bytes, unpack

BITS = (8, 4, 3, 2)
GROUP = 32
"""Inputs that share a scale in 4 bits where an entry doesn't say."""

STORED = ("weight", "scale")
"""The names of the tensors that a factor stores, floats having the first alone."""


def group_of(bits: int | None, group: int | None) -> int | None:
    """The inputs that share a scale, None for a whole row, of an entry's `bits` and `group`."""
    return GROUP if bits == 4 and group is None else group


def groups_of(columns: int, group: int | None) -> int:
    """How many scales a row has; the last may be of fewer inputs."""
    return -(-columns // group) if group else 1


def stored_bytes(rows: int, columns: int, bits: int, group: int | None, scale_bytes: int = 2) -> int:
    """The bytes that QuantizedLinear writes of a matrix (rows, columns) without its bias.

    group: inputs that share a scale, None for a whole row, also in 4 bits; scale_bytes: of one scale, 2 in 16 bits.
    """
    return rows * (row_bytes(columns, bits) + groups_of(columns, group) * scale_bytes)


class QuantizedLinear(nn.Module):
    """y = (q s) x + b: q whole numbers from -2^(bits-1) to 2^(bits-1) - 1, s the scale of their row and group.

    `weight` is (out, in) int8 in 8 bits, else (out, row_bytes) uint8 as numerics.packing.pack says; `scale` is
    (out, ceil(in / group)), or (out, 1) where group is None and a whole row shares it.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, bits: int, group: int | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits, self.group = (
            linear.in_features,
            linear.out_features,
            bits,
            group,
        )
        device, dtype = linear.weight.device, linear.weight.dtype
        kind = torch.int8 if bits == 8 else torch.uint8
        shape = self.out_features, row_bytes(self.in_features, bits)
        scales = self.out_features, groups_of(self.in_features, group)
        self.register_buffer("weight", torch.empty(shape, dtype=kind, device=device))
        self.register_buffer("scale", torch.empty(scales, dtype=dtype, device=device))
        self.bias = linear.bias

    @torch.no_grad()
    def store(self, numbers: Tensor, scale: Tensor) -> None:
        """Take q (out, in) int8 and s (out, groups), which is cast to the layer's dtype.

        Raises:
            SlimrankError: for other shapes, numbers that the bits can't hold, or scales that are not finite.
        """
        held, limit = (self.out_features, self.in_features), 2 ** (self.bits - 1)
        if numbers.shape != held or scale.shape != self.scale.shape:
            raise SlimrankError(
                f"A layer of {held} takes whole numbers of that shape and scales {tuple(self.scale.shape)}, not "
                f"{tuple(numbers.shape)} and {tuple(scale.shape)}."
            )
        if numbers.numel() and not -limit <= int(numbers.min()) <= int(numbers.max()) < limit:
            raise SlimrankError(f"Whole numbers of {self.bits} bits lie from {-limit} to {limit - 1}: round to these.")
        self.scale.copy_(scale)
        self.weight.copy_(pack(numbers, self.bits))
        self.require_finite("to store")

    def numbers(self) -> Tensor:
        """q (out, in) int8."""
        return unpack(self.weight, self.bits, self.in_features)

    def rows(self, index: Tensor) -> Tensor:
        """Rows of the weight (n, in), in the scale's dtype, by their numbers (n,)."""
        numbers = unpack(self.weight.index_select(0, index), self.bits, self.in_features)
        return dequantize(numbers, self.scale.index_select(0, index), self.group)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        if self.bits == 8 and self.group is None and x.dtype != torch.float16:  # where unscaled numbers would overflow
            y = nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype)
            return y if self.bias is None else y + self.bias
        return nn.functional.linear(x, self.matrix().to(x.dtype), self.bias)

    def matrix(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight (out, in) in `dtype`, by default the scale's."""
        scale = self.scale if dtype is None else self.scale.to(dtype)
        return dequantize(self.numbers(), scale, self.group)

    def require_finite(self, name: str) -> None:
        """Raise a SlimrankError that names the layer where a scale is not finite."""
        if not bool(self.scale.isfinite().all()):
            raise SlimrankError(f"The scales of the layer {name} hold NaN or Inf: get intact weights.")

    def extra_repr(self) -> str:
        """The shape, as nn.Linear prints it."""
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bits={self.bits}, group={self.group}"


def dequantize(numbers: Tensor, scale: Tensor, group: int | None) -> Tensor:
    """q s (out, in), in the dtype of s, from q (out, in) and s (out, ceil(in / group))."""
    floats, columns = numbers.to(scale.dtype), numbers.shape[1]
    if scale.shape[1] == 1 or group is None:
        return floats * scale
    if columns % group == 0:
        return (floats.unflatten(1, (-1, group)) * scale[..., None]).flatten(1)
    return floats * scale.repeat_interleave(group, dim=1)[:, :columns]


def floats_of(linear: Any) -> Tensor:
    """The weight (out, in) of a factor, quantized or not, in the dtype of its floats."""
    matrix: Tensor = linear.matrix() if isinstance(linear, QuantizedLinear) else linear.weight
    return matrix


def matrix_of(linear: Any) -> Tensor:
    """The weight (out, in) of a factor in float64, quantized or not."""
    return linear.matrix(torch.float64) if isinstance(linear, QuantizedLinear) else linear.weight.double()
