"""Factors stored in 8 or 4 bits with a scale, multiplied as floats."""

from typing import Any

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError

BITS = (8, 4)
GROUP = 32
"""Inputs that share a scale in 4 bits; in 8 bits a whole row does."""


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


def matrix_of(linear: Any) -> Tensor:
    """The weight (out, in) of a factor in float64, quantized or not."""
    matrix: Tensor = linear.matrix() if isinstance(linear, QuantizedLinear) else linear.weight
    return matrix.double()


def quantize_factors(form: nn.Module, bits: int) -> None:
    """Put empty quantized linears in the place of the form's factors."""
    for name, child in list(form.named_children()):
        if isinstance(child, nn.Linear):
            setattr(form, name, QuantizedLinear(child, bits))


def check_bits(name: str, form: str, bits: Any) -> None:
    """Raise a SlimrankError for bits that can't be, in the layer `name` of this form."""
    if bits is not None and bits not in BITS:
        raise SlimrankError(f"The layer {name} has factors of {bits!r} bits; give 8 or 4.")
    if bits == 4 and form in ("pivoted", "joint"):
        raise SlimrankError(
            f"The layer {name} is {form}, which 4 bits don't serve: its coefficients multiply the pivots' rounding "
            "into every other row; take 8 bits, or compress with low_rank."
        )
