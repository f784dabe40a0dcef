"""Products with whole numbers of few bits where a server has no kernel of its own for them.

One operator for any number of tokens, which chooses as it runs, since a server compiles one graph for all. It reads the
numbers as they are stored: nothing is kept beside them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from slimrank.forms.quantized import QuantizedLinear, groups_of
from slimrank.numerics.packing import MULTIPLE, pack
from slimrank.numerics.products import ROWS, stored_product, takes_eight_bits
from slimrank.serve import few_tokens
from slimrank.serve.kernels.blocks import MOST
from slimrank.serve.kernels.operator import few_tokens as few_tokens_operator


@torch.library.custom_op("slimrank::few_bit_product", mutates_args=())
def few_bit_product(x: Tensor, weight: Tensor, scale: Tensor, bits: int, group: int, kernels: bool) -> Tensor:
    """x (..., in) times the weight that a QuantizedLinear stores, transposed: (..., out).

    group: inputs that share a scale, 0 for a whole row; kernels: whether those for few tokens run here.
    """
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    if kernels and 0 < len(flat) <= MOST:
        columns = x.shape[-1]
        y = few_tokens_operator(flat, [], None, columns, [weight], [None], [None], [0, 0, 0], [scale], bits, group)
    else:
        y = stored_product(flat, weight, scale, bits, group or None)
    return y.view(*x.shape[:-1], len(weight))


@few_bit_product.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bits: int, group: int, kernels: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


class FewBits(nn.Module):
    """y = (q s) x with a matrix of few bits that is filled up with zeros to sizes which kernels take.

    few: the matrix as it is stored; rows, columns: it is filled up to multiples of so many.
    """

    def __init__(self, few: QuantizedLinear, rows: int = 1, columns: int = 1) -> None:
        super().__init__()
        self.out_features, self.filled = few.out_features, filled(few, rows, columns)
        self.missing = self.filled.in_features - few.in_features

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        y = self.product(pad(x, (0, self.missing)) if self.missing else x.contiguous())
        return y[..., : self.out_features].contiguous()

    def product(self, x: Tensor) -> Tensor:
        """The product with what is filled up."""
        raise NotImplementedError


class StoredProduct(FewBits):
    """FewBits by the operator."""

    def __init__(self, few: QuantizedLinear) -> None:
        super().__init__(few, *((ROWS, MULTIPLE) if few.bits == 8 else (1, 1)))
        self.kernels = kernels_for(few.scale)

    def product(self, x: Tensor) -> Tensor:
        """By the operator."""
        return product_of(x, self.filled, self.kernels)


def product_of(x: Tensor, few: QuantizedLinear, kernels: bool) -> Tensor:
    """x (..., in) times the weight of `few`, transposed, by the operator; kernels: what kernels_for says."""
    return few_bit_product(x, few.weight, few.scale, few.bits, few.group or 0, kernels)


def kernels_for(scale: Tensor) -> bool:
    """Whether the kernels for few tokens run on the device of these scales and in their dtype."""
    return scale.device.type == few_tokens.DEVICE and few_tokens.unavailable(scale.device, scale.dtype) is None


def why_floats(few: QuantizedLinear, kernels: bool) -> str | None:
    """Why the operator makes the numbers floats at every call, as the end of a sentence; None where it doesn't."""
    if kernels or not few.weight.numel():
        return None
    if few.weight.device.type != "cpu":
        return f"slimrank's kernels for few tokens don't run here ({few.weight.device.type}, {few.scale.dtype})"
    if few.bits == 8 and few.group is None and takes_eight_bits(few.out_features, few.in_features):
        return None
    return "torch's kernels for a CPU read only 8 bits with one scale a row"


def filled(few: QuantizedLinear, rows: int, columns: int) -> QuantizedLinear:
    """The matrix with zeros below and to the right, up to multiples of so many rows and columns.

    Its group is None where one scale is enough for a row.
    """
    group = few.group if few.group and few.group < few.in_features else None
    right, below = -few.in_features % columns, -few.out_features % rows
    width, weight, scale = few.in_features + right, few.weight, few.scale[:, : groups_of(few.in_features, group)]
    if right or below:
        weight = pack(pad(few.numbers(), (0, right, 0, below)), few.bits)
        scale = pad(scale, (0, groups_of(width, group) - scale.shape[1], 0, below))
    return QuantizedLinear.of(weight, scale, width, few.bits, group)
