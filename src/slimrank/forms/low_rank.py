"""W' = U V: two thin linears in a row."""

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
from slimrank.numerics.balance import balanced


class LowRank(Form):
    """y = U (V x) + b with V = `down` (r, in) and U = `up` (out, r): r (out + in) numbers."""

    form = "low_rank"
    factors = ("down", "up")
    bias_name = "up.bias"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, device=device, dtype=dtype)
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        return self.up(self.down(x))

    @classmethod
    @torch.no_grad()
    def from_low_rank(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Self:
        """The module with U = left (out, r) and V = right (r, in), brought to like scale."""
        (out_features, rank), in_features = left.shape, right.shape[1]
        left, right = balanced(left, right)
        module = cls.empty(in_features, out_features, rank, bias is not None, left.dtype).to_empty(device=left.device)
        module.down.weight.copy_(right)
        module.up.weight.copy_(left)
        if bias is not None:
            module.up.bias.copy_(bias)
        return module

    @staticmethod
    def count_parameters(out_features: int, in_features: int, entry: dict[str, Any]) -> int:
        """r (out + in)."""
        return entry["rank"] * (out_features + in_features)

    @staticmethod
    def count_outputs(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """The rows of U."""
        return len(tensors["up.weight"])

    def permute_outputs(self, order: Tensor) -> None:
        """Reorder U's rows and the bias."""
        permute_outputs(self.up, order)

    def permute_inputs(self, order: Tensor) -> None:
        """Reorder V's columns."""
        permute_inputs(self.down, order)

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """W' = U V (out, in) in float64."""
        return matrix_of(self.up) @ matrix_of(self.down)

    def outputs(self) -> Outputs | None:
        """y = U z + b."""
        left = stored(self.up)
        return None if left is None else Outputs(self.down, left, bias=self.up.bias)

    def shard(self, rows: Tensor, columns: Tensor) -> Shard:
        """U[rows] and V[:, columns]."""
        return LowRankShard(picked(self.down, columns=columns), picked(self.up, rows))


class LowRankShard(Shard):
    """y = U h with h = V x."""

    def __init__(self, down: nn.Linear | QuantizedLinear, up: nn.Linear | QuantizedLinear) -> None:
        """down: V (r, inputs here); up: U (outputs here, r)."""
        super().__init__(down)
        self.up = up

    def forward(self, h: Tensor) -> Tensor:
        """Map h (..., r) to y (..., outputs here)."""
        y: Tensor = self.up(h)
        return y

    def outputs(self) -> Outputs | None:
        """y = U z."""
        left = stored(self.up)
        return None if left is None else Outputs(None, left)
