"""W' = W, in whole numbers of few bits."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from slimrank.forms.base import Form
from slimrank.forms.linear import permute_inputs, permute_outputs
from slimrank.forms.outputs import Outputs
from slimrank.forms.quantized import QuantizedLinear, matrix_of, picked
from slimrank.forms.shard import Shard
from slimrank.forms.stored import stored


class Dense(Form):
    """y = W' x + b with W' = `whole` (out, in), its bits and groups as for any factor: no rank, out x in numbers."""

    form = "dense"
    ranked = False
    factors = ("whole",)
    bias_name = "whole.bias"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int | None = None,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """rank: not looked at."""
        super().__init__(in_features, out_features, min(in_features, out_features), device=device, dtype=dtype)
        self.whole = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        y: Tensor = self.whole(x)
        return y

    @classmethod
    @torch.no_grad()
    def from_low_rank(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Self:
        """The module with W' = left (out, r) @ right (r, in)."""
        product = (left.double() @ right.double()).to(left.dtype)
        return cls.from_dense(product, bias)

    @classmethod
    @torch.no_grad()
    def from_dense(cls, weight: Tensor, bias: Tensor | None = None) -> Self:
        """The module with W' = weight (out, in), in its dtype and on its device."""
        out_features, in_features = weight.shape
        module = cls.empty(in_features, out_features, 0, bias is not None, weight.dtype).to_empty(device=weight.device)
        module.whole.weight.copy_(weight)
        if bias is not None:
            module.whole.bias.copy_(bias)
        return module

    @staticmethod
    def count_parameters(out_features: int, in_features: int, entry: dict[str, Any]) -> int:
        """out in."""
        return out_features * in_features

    @staticmethod
    def count_outputs(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """The rows of W'."""
        return len(tensors["whole.weight"])

    def permute_outputs(self, order: Tensor) -> None:
        """Reorder the rows and the bias."""
        permute_outputs(self.whole, order)

    def permute_inputs(self, order: Tensor) -> None:
        """Reorder the columns."""
        permute_inputs(self.whole, order)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """W' (out, in) in float64."""
        return matrix_of(self.whole)

    def outputs(self) -> Outputs | None:
        """y = W' x + b: all of it the input factor, or, of few bits, all inputs kept."""
        whole = stored(self.whole)
        if whole is None:
            return None
        if whole.bits is not None:
            return Outputs(None, whole, bias=self.whole.bias, kept=self.in_features)
        return Outputs(self.whole, None, copies=self.out_features, bias=self.whole.bias)

    def shard(self, rows: Tensor, columns: Tensor) -> Shard:
        """W'[rows][:, columns]."""
        return DenseShard(picked(self.whole, rows, columns))


class DenseShard(Shard):
    """h = y = W[rows][:, columns] x."""

    def __init__(self, whole: nn.Linear | QuantizedLinear) -> None:
        """whole: W[rows][:, columns], (outputs here, inputs here)."""
        super().__init__(whole)
        self.size = whole.out_features

    def forward(self, h: Tensor) -> Tensor:
        """Return h (..., outputs here)."""
        return h

    def outputs(self) -> Outputs:
        """All of them copies of h."""
        return Outputs(None, None, copies=self.size)
