"""Curves: the loss of a unit at every rank, on the calibration and on the held-out windows."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimrank.numerics.grams import Grams, times
from slimrank.numerics.projector import Small, eigenvalues, eigenvectors
from slimrank.numerics.threads import one_thread
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Prices
from slimrank.spectrum.decomposition import Decomposition, Route, decompose_weight

Timer = Callable[[], AbstractContextManager[None]]

LEAST = 1e-300  # the least divisor, for weights whose output is 0


@dataclass(frozen=True)
class Curve:
    """The loss at every rank 0..q, given by values (q,), the singular values of L^T W R in descending order.

    measured: |L^T (W - W'_r) R~|_F / |L^T W R~|_F at every rank (q + 1,), R~ of the held-out windows, None without
    them; damping: see Decomposition; basis: eigenvectors (q, q) that projector_route reuses, None if they were not
    kept; choice: the result of Metric.choose. prices: by grid what rounding would cost, where it was asked for.
    """

    values: Tensor
    measured: Tensor | None = None
    damping: float = 0.0
    basis: Tensor | None = None
    choice: float | None = None
    prices: Mapping[Grid, Prices] = field(default_factory=dict)

    def losses(self) -> Tensor:
        """The squared error at every rank 0..q (q + 1,), float64: the sum of the squared singular values beyond it."""
        squares = self.values.double().square().flip(0).cumsum(0).flip(0)
        return torch.cat([squares, squares.new_zeros(1)])

    def loss(self, rank: int) -> float:
        """The squared error at a rank."""
        return self.losses()[rank].item()

    def relative(self, rank: int) -> float:
        """|L^T (W - W'_r) R|_F / |L^T W R|_F at a rank."""
        losses = self.losses()
        return share(losses[rank].item(), losses[0].item())

    def stored(self, rank: int | None, grid: Grid | None) -> float:
        """The squared error at a rank (None: dense) and on a grid (None: floats); one without a price adds nothing."""
        cut = 0.0 if rank is None else self.loss(rank)
        price = None if grid is None else self.prices.get(grid)
        if price is None:
            return cut
        return cut + (price.dense if rank is None else price.factors[rank].item())


def share(loss: float, whole: float) -> float:
    """The error's norm over the output's, from their squares."""
    return (loss / max(whole, LEAST)) ** 0.5


def curve(
    weight: Tensor,
    grams: Grams,
    held_out: Grams | None,
    route: Route = "projector",
    *,
    bases: bool = True,
    timer: Timer = nullcontext,
) -> Curve:
    """The curve of W (m, n) under `grams`, measured under the left Gram of `grams` and the right one of `held_out`.

    The projector route solves the eigenproblem of the smaller side. Without `bases` only its eigenvalues are computed
    (losses good to 5e-5, see Small), and the eigenvectors for the measurement in float32, unless m > n (see
    Small.left_out). timer: a context around the measurement.
    """
    with one_thread(weight):
        return _curve(weight.double(), grams, held_out, route, bases, timer)


def _curve(weight: Tensor, grams: Grams, held_out: Grams | None, route: Route, bases: bool, timer: Timer) -> Curve:
    if route != "projector":
        return curve_of(weight, decompose_weight(weight, grams, route), held_out and Grams(grams.left, held_out.right))
    small = Small(weight, grams, rough=not bases)
    square = small.square()
    values, basis = eigenvectors(square) if bases else (eigenvalues(square), None)
    if held_out is None:
        return Curve(values, basis=basis)
    with timer():
        _, directions = (values, basis) if basis is not None else eigenvectors(square if small.tall else square.float())
        left = small.left_out(values, directions, held_out.right)
        return Curve(values, (left / left[0].clamp_min(LEAST)).sqrt(), basis=basis)


def curve_of(weight: Tensor, decomposition: Decomposition, held_out: Grams | None) -> Curve:
    """The curve of a decomposition of W (m, n) by any route, measured under `held_out`."""
    measured = None if held_out is None else _expansion_shares(weight.double(), decomposition, held_out)
    return Curve(decomposition.values, measured, decomposition.damping)


def _expansion_shares(weight: Tensor, decomposition: Decomposition, grams: Grams) -> Tensor:
    """|W - sum_{i < r} l_i r_i| / |W| at every r (q + 1,), for vectors that need not be orthogonal in these Grams."""
    left, right, factors = grams.left, grams.right, decomposition
    weighted = times(left, factors.left)
    overlaps = (factors.left.T @ weighted) * (factors.right @ times(right, factors.right.T))
    alone = (times(right, weight.T) @ weighted * factors.right.T).sum(0)
    total = (times(left, weight) * times(right, weight.T).T).sum()
    both = overlaps.cumsum(0).cumsum(1).diagonal()
    losses = total - torch.cat([both.new_zeros(1), 2 * alone.cumsum(0) - both])
    return (losses / total.clamp_min(LEAST)).clamp_min(0).sqrt()
