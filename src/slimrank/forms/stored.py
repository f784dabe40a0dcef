"""A factor as data for kernels: floats, or whole numbers of few bits with their scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.forms.linear import plain_weight
from slimrank.forms.quantized import QuantizedLinear


@dataclass(frozen=True)
class StoredMatrix:
    """M (n, m) as it is stored.

    numbers: floats (n, m), or whole numbers of `bits` bits as QuantizedLinear.weight; scale, group: as there.
    """

    numbers: Tensor
    scale: Tensor | None = None
    bits: int | None = None
    group: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """Of the floats that it stands for."""
        return self.numbers.dtype if self.scale is None else self.scale.dtype


def stored(module: object) -> StoredMatrix | None:
    """The weight of a module that gives W x + b and nothing else, quantized or not; None of any other."""
    if type(module) is QuantizedLinear:
        return StoredMatrix(module.weight, module.scale, module.bits, module.group)
    weight = plain_weight(module)
    return None if weight is None else StoredMatrix(weight)
