"""Duo-SVD's column level (arXiv 2510.19385): columns with the largest error stay dense, the rest is low rank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.factorize.base import Built, Factorizer, Target
from slimrank.forms import KeptColumns, LowRank
from slimrank.model.units import Shape
from slimrank.numerics.grams import Grams, times
from slimrank.spectrum.decomposition import Decomposition, decompose_weight

GOLDEN = (3 - 5**0.5) / 2
Search = Literal["golden", "every"]


@dataclass(frozen=True)
class Trade:
    """traded: how many ranks are exchanged for dense columns; loss: the squared error that remains."""

    traded: int
    loss: float


@dataclass(frozen=True)
class Split:
    """Dense columns and a low-rank rest: order (n,) lists the c dense columns first, loss is the squared error."""

    order: Tensor
    columns: int
    rank: int
    loss: float
    rest: Decomposition


class ColumnsFactorizer(Factorizer):
    """A planned rank r0 is a budget of r0 (m + n) parameters; some go into dense columns if that lowers the error.

    gain: the share by which the squared error must fall, or else the linear is plain low rank. search: `golden` is the
    paper's golden section, a few decompositions for each linear; `every` tries all numbers of traded ranks, since the
    loss may have several minima.
    """

    searches: ClassVar[bool] = True

    name: Literal["columns"] = "columns"
    gain: float = Field(0.01, ge=0, lt=1)
    search: Search = "golden"

    def entries(self, shapes: Sequence[Shape], rank: int) -> list[dict[str, Any]]:
        """A low-rank entry, whose r0 (m + n) parameters are the most that `build` uses."""
        return [{"form": LowRank.form, "rank": rank} for _ in shapes]

    def build(self, target: Target, rank: int) -> Built:
        """The best split of the budget, or the plain truncation."""
        weight, (bias,) = target.weight, target.biases
        trade = best_trade(weight, target.grams, target.decomposition, rank, self.gain, self.search)
        if trade.traded == 0:
            layer = LowRank.from_low_rank(*target.decomposition.cut(rank), bias)
            return Built(target.in_their_dtypes([layer]), trade.loss)
        order = column_order(weight, target.grams, target.decomposition, rank)
        split = split_at(weight, target.grams, order, rank, trade.traded)
        left, right = split.rest.cut(split.rank)
        kept = split.order[: split.columns]
        columns = KeptColumns.from_columns(weight[:, kept].to(left), left, right, kept, bias)
        return Built(target.in_their_dtypes([columns]), trade.loss)


def best_trade(
    weight: Tensor,
    grams: Grams,
    decomposition: Decomposition,
    rank: int,
    gain: float = 0.01,
    search: Search = "golden",
) -> Trade:
    """The number of the `rank` ranks to trade for the least loss found; 0 unless that is lower by `gain`.

    weight (m, n); decomposition: of it under `grams`.
    """
    order = column_order(weight, grams, decomposition, rank)
    plain = decomposition.loss(rank)
    loss = cache(lambda traded: split_at(weight, grams, order, rank, traded).loss if traded else plain)
    traded = SEARCHES[search](loss, rank)
    bought = bought_columns((weight.shape[0], weight.shape[1]), rank, traded)
    if bought == 0 or loss(traded) >= (1 - gain) * plain:
        return Trade(0, plain)
    return Trade(traded, loss(traded))


def column_order(weight: Tensor, grams: Grams, decomposition: Decomposition, rank: int) -> Tensor:
    """Column indices (n,) by their part of the truncation's squared error, descending."""
    left, right = decomposition.cut(rank)
    return column_scores(weight.double() - left @ right, grams).argsort(descending=True, stable=True)


def column_scores(error: Tensor, grams: Grams) -> Tensor:
    """The squared error |L^T E[:, i]|^2 H_ii of each column alone (n,), for E (m, n)."""
    squares = (error * times(grams.left, error)).sum(0)
    if grams.right is None:
        return squares
    return squares * (grams.right if grams.right.ndim == 1 else grams.right.diagonal())


def bought_columns(shape: Shape, rank: int, traded: int) -> int:
    """The largest c with (m + 1) c + (m + n - c) (r0 - delta) <= r0 (m + n), for r0 = rank and delta = traded ranks.

    The paper's round(delta (m + n) / (m - r0 + delta)), rounded down and with each column's index counted.
    """
    rows, columns = shape
    return min(traded * (rows + columns) // (rows + 1 - rank + traded), columns)


def split_at(weight: Tensor, grams: Grams, order: Tensor, rank: int, traded: int) -> Split:
    """The split at `traded` ranks; dense columns have no error, so the optimum of the rest alone is exact."""
    columns = bought_columns((weight.shape[0], weight.shape[1]), rank, traded)
    order = torch.cat([order[:columns].sort().values, order[columns:].sort().values])
    rest = order[columns:]
    decomposition = decompose_weight(weight[:, rest], Grams(grams.left, sub_gram(grams.right, rest)))
    left = min(rank - traded, len(decomposition.values))
    return Split(order, columns, left, decomposition.values[left:].square().sum().item(), decomposition)


def sub_gram(gram: Tensor | None, indices: Tensor) -> Tensor | None:
    """The Gram of the input channels `indices`."""
    if gram is None:
        return None
    return gram[indices] if gram.ndim == 1 else gram[indices][:, indices]


def golden_section(loss: Callable[[int], float], rank: int) -> int:
    """delta in [0, rank - 1] with the least loss found: two probes, then golden section to an interval below 3.

    0 if neither probe, round(0.382 r0) or round(0.090 r0), beats loss(0).
    """
    low, high = 0, max(rank - 1, 0)
    probes = {min(round(share * rank), high) for share in (GOLDEN, GOLDEN**2 * (1 - GOLDEN))}
    if all(loss(probe) >= loss(0) for probe in probes):
        return 0
    seen = {0, *probes}
    while high - low >= 3:
        step = max(int(GOLDEN * (high - low)), 1)
        first, second = low + step, high - step
        seen |= {first, second}
        low, high = (low, second) if loss(first) <= loss(second) else (first, high)
    return min(sorted(seen | set(range(low, high + 1))), key=loss)


def every_trade(loss: Callable[[int], float], rank: int) -> int:
    """delta in [0, rank - 1] with the least loss, by trying all."""
    return min(range(max(rank, 1)), key=loss)


SEARCHES: dict[Search, Callable[[Callable[[int], float], int], int]] = {
    "golden": golden_section,
    "every": every_trade,
}
