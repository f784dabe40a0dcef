"""Pivoted storage of a rank-r weight (PIFA): r of its own rows, and the other rows as combinations of them."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms.bits import pack, packed_bytes, places, unpack
from slimrank.forms.linear import permute_inputs, permute_outputs
from slimrank.forms.ordered import Ordered
from slimrank.forms.outputs import Outputs, table_of
from slimrank.forms.quantized import matrix_of, picked
from slimrank.forms.shard import Shard, frozen
from slimrank.forms.stored import stored
from slimrank.numerics.pivots import pivot_rows
from slimrank.numerics.take import take_last


class Pivoted(Ordered):
    """y = scatter(y_P, C y_P) + b with y_P = W'[P] x: r (out + in) - r^2 numbers and a bit for every row.

    `pivots` holds W'[P] (r, in), `others` holds C (out - r, r) or is None at full rank, and `chosen` (ceil(out / 8),)
    uint8 has a bit for every row that is a pivot. `order` (out,), which sends [y_P, y_N] to the layer's own row order,
    follows from `chosen` and isn't stored: it is made at the first call.

    A subclass may have layers that share their pivots: `own` of the r pivots are then rows of this layer, from `first`
    on, and `leads` says whether it stores all r.
    """

    form = "pivoted"
    factors = ("pivots", "others")
    tensors = ("chosen",)
    refused_bits: ClassVar[Mapping[int, str]] = {
        4: "its coefficients multiply the pivots' rounding into every other row; take 8 bits, or compress with low_rank"
    }
    of_outputs = True
    chosen: Tensor
    table: Tensor | None
    first: int = 0

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        *,
        own: int | None = None,
        leads: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        own = rank if own is None else own
        if own > out_features:
            raise SlimrankError(f"A pivoted layer of {out_features} outputs can't have rank {rank}; lower the rank.")
        super().__init__(in_features, out_features, rank, device=device, dtype=dtype)
        self.own, rest = own, out_features - own
        if leads:
            self.pivots = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.others = nn.Linear(rank, rest, bias=False, device=device, dtype=dtype) if rest else None
        self.bias = nn.Parameter(torch.zeros(out_features, device=device, dtype=dtype)) if bias else None
        self.register_buffer("chosen", torch.zeros(packed_bytes(out_features), device=device, dtype=torch.uint8))
        self.register_buffer("table", None, persistent=False)

    @property
    def group(self) -> "tuple[Pivoted, ...]":
        """The layers that share the pivots."""
        return (self,)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (..., in) to y (..., out)."""
        z = self.pivoted(x)
        y = z if self.own == self.rank else z[..., self.first : self.first + self.own]
        if self.others is not None:
            y = torch.cat([y, self.others(z)], dim=-1)
        if not self.in_order:
            y = take_last(y, self.known_order())
        return y if self.bias is None else y + self.bias

    def pivoted(self, x: Tensor) -> Tensor:
        """W'[P] x (..., r)."""
        y: Tensor = self.pivots(x)
        return y

    def make_order(self) -> Tensor:
        """For every row (out,) int64 its place in [y_P, y_N], both ascending."""
        pivot = unpack(self.chosen, self.out_features)
        return places(pivot) + self.own * ~pivot

    def make_table(self) -> Tensor:
        """Outputs.table: the order of the outputs in [z, C z] the other way round."""
        order = self.make_order()
        order = torch.where(order < self.own, order + self.first, order + (self.rank - self.own))
        return table_of(order, self.rank, self.out_features - self.own)

    def forget_order(self) -> None:
        """To be called after the stored tensors have changed."""
        super().forget_order()
        self.table = None

    def outputs(self) -> Outputs | None:
        """y = [z, C z] in the layer's row order, of z its own pivots, + b."""
        matrix = stored(self.others)
        if self.others is not None and matrix is None:
            return None
        return Outputs(self.right, matrix, self.own, self.known("table", self.make_table), self.bias)

    @classmethod
    @torch.no_grad()
    def from_low_rank(cls, left: Tensor, right: Tensor, bias: Tensor | None = None) -> Self:
        """The module with W' = left (out, r) @ right (r, in), its pivots the rows of left that `pivot_rows` picks."""
        (out_features, rank), in_features = left.shape, right.shape[1]
        module = cls.empty(in_features, out_features, rank, bias is not None, left.dtype).to_empty(device=left.device)
        rows, combinations = pivot_rows(left)
        module.pivots.weight.copy_(left[rows[: module.rank]].double() @ right.double())
        pivot = torch.zeros(out_features, dtype=torch.bool, device=left.device)
        module.fill(pivot.index_fill(0, rows[: module.rank], True), combinations, bias)
        return module

    @torch.no_grad()
    def fill(self, chosen: Tensor, combinations: Tensor, bias: Tensor | None) -> None:
        """Take which rows are pivots (out,), C (out - own, r) and the bias."""
        if self.others is not None:
            self.others.weight.copy_(combinations)
        if self.bias is not None and bias is not None:
            self.bias.copy_(bias)
        self.chosen.copy_(pack(chosen))

    @torch.no_grad()
    def randomize(self) -> None:
        """Random values and pivots."""
        super().randomize()
        chosen = torch.zeros(self.out_features, dtype=torch.bool)
        chosen[torch.randperm(self.out_features)[: self.own]] = True
        self.chosen.copy_(pack(chosen))
        self.forget_order()

    @staticmethod
    def count_parameters(out_features: int, in_features: int, entry: dict[str, Any]) -> int:
        """r in + (out - r) r, and a byte for every eight rows."""
        rank = entry["rank"]
        return rank * in_features + (out_features - rank) * rank + packed_bytes(out_features)

    @staticmethod
    def count_outputs(entry: dict[str, Any], tensors: Mapping[str, Tensor]) -> int:
        """Its own pivots and the rows of C."""
        others = tensors.get("others.weight")
        return entry.get("own", entry["rank"]) + (0 if others is None else len(others))

    @torch.no_grad()
    def permute_outputs(self, order: Tensor) -> None:
        """Reorder the pivots among themselves, for all who share them, and the others likewise, and the bias."""
        pivot = unpack(self.chosen, self.out_features)
        place, now = places(pivot)[order], pivot[order]
        shared = torch.arange(self.rank, device=order.device)
        shared[self.first : self.first + self.own] = self.first + place[now]
        permute_outputs(self.right, shared)
        for member in self.group:
            if member.others is not None:
                permute_inputs(member.others, shared)
        if self.others is not None:
            permute_outputs(self.others, place[~now])
        if self.bias is not None:
            self.bias.copy_(self.bias[order])
        self.chosen.copy_(pack(now))
        self.forget_order()

    def permute_inputs(self, order: Tensor) -> None:
        """Reorder the pivots' columns, of a group once."""
        if self.leads:
            permute_inputs(self.right, order)

    @property
    def right(self) -> nn.Linear:
        """W'[P], the pivots."""
        return self.pivots

    @torch.no_grad()
    def left(self) -> Tensor:
        """[I, C] (out, r) in the layer's row order, in float64; of I the rows of its own pivots."""
        unit = torch.eye(self.rank, dtype=torch.float64, device=self.chosen.device)
        rows = unit[self.first : self.first + self.own]
        if self.others is not None:
            rows = torch.cat([rows, matrix_of(self.others)])
        return rows.index_select(0, self.make_order())

    @torch.no_grad()
    def dense_weight(self) -> Tensor:
        """W' (out, in) in float64."""
        return self.left() @ matrix_of(self.right)

    def shard(self, rows: Tensor, columns: Tensor) -> Shard:
        """W'[P][:, columns] and the rows of C that are among `rows`."""
        return PivotedShard(self, rows, columns)


class PivotedShard(Shard):
    """h = all of W'[P] x; y takes the rows here that are pivots from h, and the others from C h."""

    def __init__(self, layer: Pivoted, rows: Tensor, columns: Tensor) -> None:
        super().__init__(picked(layer.pivots, columns=columns) if layer.leads else None, layer.leader)
        pivot = unpack(layer.chosen, layer.out_features)
        place, combined = places(pivot)[rows], ~pivot[rows]
        needed = place[combined].sort().values
        order = place + layer.first
        order[combined] = layer.rank + torch.searchsorted(needed, place[combined])
        self.others = None if layer.others is None else picked(layer.others, needed)
        self.order = frozen(order)
        self.table, self.copies = frozen(table_of(order, layer.rank, len(needed))), int((~combined).sum())

    def forward(self, h: Tensor) -> Tensor:
        """Map h (..., r) to y (..., rows)."""
        y = h if self.others is None else torch.cat([h, self.others(h)], dim=-1)
        return take_last(y, self.order)

    def outputs(self) -> Outputs | None:
        """y = [z, C z] in the order of the rows here."""
        matrix = stored(self.others)
        if self.others is not None and matrix is None:
            return None
        return Outputs(None, matrix, self.copies, self.table)
