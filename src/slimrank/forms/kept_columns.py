"""W' = some columns of W as they are, and the others in low rank (Duo-SVD, CPSVD)."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from slimrank.forms.bits import places
from slimrank.forms.linear import permute_inputs, permute_outputs
from slimrank.forms.ordered import Ordered
from slimrank.forms.outputs import Outputs
from slimrank.forms.quantized import matrix_of, picked
from slimrank.forms.shard import Shard, frozen
from slimrank.forms.stored import stored
from slimrank.numerics.balance import balanced
from slimrank.numerics.take import take_last


class KeptColumns(Ordered):
    """y = W_K x_K + U V x_rest + b: c out + r (out + in - c) numbers and c indices.

    `kept` (c,) int32 lists the kept inputs in ascending order, `down` is V (r, in - c) and `up` is [W_K, U]
    (out, c + r). One gather of x a call; the two products with W_K and U are one. `order` (in,), kept inputs before
    the others, follows from `kept` and isn't stored: it is made at the first call.
    """

    form = "columns"
    of_outputs = False
    sizes = ("columns",)
    factors = ("down", "up")
    tensors = ("kept",)
    bias_name = "up.bias"
    kept: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        columns: int = 0,
        bias: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, rank, device=device, dtype=dtype)
        self.columns = columns
        self.down = nn.Linear(in_features - columns, rank, bias=False, device=device, dtype=dtype)
        self.up = nn.Linear(columns + rank, out_features, bias=bias, device=device, dtype=dtype)
        self.register_buffer("kept", torch.arange(columns, device=device, dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        if not self.in_order:
            x = take_last(x, self.known_order())
        kept, rest = x.tensor_split((self.columns,), dim=-1)
        return self.up(torch.cat([kept, self.down(rest)], dim=-1))

    def make_order(self) -> Tensor:
        """The inputs (in,) int64, kept ones before the others, both ascending."""
        others = torch.ones(self.in_features, dtype=torch.uint8, device=self.kept.device)
        return others.index_fill(0, self.kept.long(), 0).argsort(stable=True)

    @classmethod
    def from_low_rank(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Self:
        """The module with W' = left (out, r) @ right (r, in), no column kept."""
        nothing = left.new_empty(len(left), 0)
        return cls.from_columns(nothing, left, right, torch.empty(0, device=left.device), bias)

    @classmethod
    @torch.no_grad()
    def from_columns(
        cls, columns: Tensor, left: Tensor, right: Tensor, kept: Tensor, bias: Tensor | None = None
    ) -> Self:
        """The module with columns (out, c) at the inputs `kept` (c,), ascending, and left @ right at the others.

        left (out, r), right (r, in - c), brought to like scale.
        """
        (out_features, count), (rank, rest) = columns.shape, right.shape
        module = cls.empty(count + rest, out_features, rank, bias is not None, left.dtype, columns=count)
        module = module.to_empty(device=left.device)
        left, right = balanced(left, right)
        module.down.weight.copy_(right)
        module.up.weight.copy_(torch.cat([columns, left], dim=1))
        module.kept.copy_(kept)
        if bias is not None:
            module.up.bias.copy_(bias)
        return module

    @torch.no_grad()
    def randomize(self) -> None:
        """Random values and kept columns."""
        super().randomize()
        self.kept.copy_(torch.randperm(self.in_features)[: self.columns].sort().values)
        self.forget_order()

    @staticmethod
    def count_parameters(out_features: int, in_features: int, entry: dict[str, Any]) -> int:
        """c out + r (out + in - c), and c indices."""
        rank, columns = entry["rank"], entry.get("columns", 0)
        return columns * (out_features + 1) + rank * (out_features + in_features - columns)

    @staticmethod
    def count_outputs(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """The rows of [W_K, U]."""
        return len(tensors["up.weight"])

    def entry(self) -> dict[str, Any]:
        """Form, rank, and how many columns are kept."""
        return super().entry() | {"columns": self.columns}

    def permute_outputs(self, order: Tensor) -> None:
        """Reorder the rows of [W_K, U] and the bias."""
        permute_outputs(self.up, order)

    @torch.no_grad()
    def permute_inputs(self, order: Tensor) -> None:
        """Reorder the kept columns among themselves and the others likewise."""
        among = torch.zeros(self.in_features, dtype=torch.bool, device=order.device)
        among[self.kept.long()] = True
        place, now = places(among)[order], among[order]
        behind = torch.arange(self.columns, self.up.in_features, device=order.device)
        permute_inputs(self.up, torch.cat([place[now], behind]))
        permute_inputs(self.down, place[~now])
        self.kept.copy_(now.nonzero().flatten())
        self.forget_order()

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """W' (out, in) in float64."""
        kept, left = matrix_of(self.up).tensor_split((self.columns,), dim=1)
        ordered = torch.cat([kept, left @ matrix_of(self.down)], dim=1)
        return ordered.index_select(1, self.make_order().argsort())

    def outputs(self) -> Outputs | None:
        """y = [W_K, U] [x_K ; z] + b with z = V x_rest."""
        matrix = stored(self.up)
        if matrix is None:
            return None
        return Outputs(self.down, matrix, bias=self.up.bias, order=self.known_order(), kept=self.columns)

    def shard(self, rows: Tensor, columns: Tensor) -> Shard:
        """[W_K, U][rows] and V, with the kept and the other inputs among `columns`."""
        return KeptColumnsShard(self, rows, columns)

    def extra_repr(self) -> str:
        """The shape, as nn.Linear prints it."""
        return f"{super().extra_repr()}, columns={self.columns}"


class KeptColumnsShard(Shard):
    """y = [W_K, U] [x_K, V x_rest], of the rows here, with the kept and the other inputs that are here."""

    def __init__(self, layer: KeptColumns, rows: Tensor, columns: Tensor) -> None:
        super().__init__()
        kept = torch.zeros(layer.in_features, dtype=torch.bool).index_fill(0, layer.kept.long(), True)
        place, here = places(kept)[columns], kept[columns]
        left = torch.arange(layer.columns, layer.columns + layer.rank)
        self.down = picked(layer.down, columns=place[~here])
        self.up = picked(layer.up, rows, torch.cat([place[here], left]))
        self.kept, self.rest = frozen(here.nonzero()[:, 0]), frozen((~here).nonzero()[:, 0])
        self.order = frozen(torch.cat([self.kept, self.rest]))

    def forward(self, h: Tensor) -> Tensor:
        """Map the inputs here h (..., columns) to y (..., rows)."""
        rest = self.down(take_last(h, self.rest))
        y: Tensor = self.up(torch.cat([take_last(h, self.kept), rest], dim=-1))
        return y

    def outputs(self) -> Outputs | None:
        """y = [W_K, U] [x_K ; z] with z = V x_rest."""
        left = stored(self.up)
        return None if left is None else Outputs(self.down, left, order=self.order, kept=len(self.kept))
