"""Factors stored in 8 or 4 bits with a scale, multiplied as floats."""

from typing import Any

import torch
from torch import Tensor, nn

BITS = (8, 4)
GROUP = 32
"""Inputs that share a scale in 4 bits; in 8 bits a whole row does."""

STORED = ("weight", "scale")
"""The names of the tensors that a factor stores, floats having the first alone."""


class QuantizedLinear(nn.Module):
    """y = (q s) x + b: q whole numbers of 8 bits, or of 4 packed in pairs; symmetric, s > 0.

    In 8 bits `weight` is (out, in) int8 and `scale` (out, 1); in 4 bits `weight` is (out, ceil(in / GROUP) GROUP / 2)
    uint8, the even input in the low half, each plus 8, and `scale` (out, ceil(in / GROUP)).
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear, bits: int) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bits = linear.in_features, linear.out_features, bits
        groups = -(-linear.in_features // GROUP) if bits == 4 else 1
        shape = (linear.out_features, groups * GROUP // 2 if bits == 4 else linear.in_features)
        device, dtype = linear.weight.device, linear.weight.dtype
        kind = torch.uint8 if bits == 4 else torch.int8
        self.register_buffer("weight", torch.empty(shape, dtype=kind, device=device))
        self.register_buffer("scale", torch.empty(linear.out_features, groups, dtype=dtype, device=device))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        if self.bits == 8 and x.dtype != torch.float16:  # where unscaled numbers would overflow
            y = nn.functional.linear(x, self.weight.to(x.dtype)) * self.scale[:, 0].to(x.dtype)
            return y if self.bias is None else y + self.bias
        return nn.functional.linear(x, self.matrix().to(x.dtype), self.bias)

    def matrix(self) -> Tensor:
        """The weight (out, in) in the scale's dtype."""
        return dequantize(self.weight, self.scale, self.in_features)


def dequantize(weight: Tensor, scale: Tensor, in_features: int) -> Tensor:
    """q s (out, in) from what QuantizedLinear stores."""
    if weight.dtype == torch.int8:
        return weight.to(scale.dtype) * scale
    halves = torch.stack([weight & 15, weight >> 4], dim=-1).flatten(1).to(scale.dtype) - 8
    return (halves.unflatten(1, (-1, GROUP)) * scale[..., None]).flatten(1)[:, :in_features]


def pack_halves(numbers: Tensor) -> Tensor:
    """Whole numbers (out, n) from -8 to 7, n even, as uint8 (out, n / 2)."""
    shifted = (numbers + 8).to(torch.uint8)
    return shifted[:, ::2] | (shifted[:, 1::2] << 4)


def floats_of(linear: Any) -> Tensor:
    """The weight (out, in) of a factor, quantized or not, in the dtype of its floats."""
    matrix: Tensor = linear.matrix() if isinstance(linear, QuantizedLinear) else linear.weight
    return matrix


def matrix_of(linear: Any) -> Tensor:
    """The weight (out, in) of a factor in float64, quantized or not."""
    return floats_of(linear).double()
