"""Curves: what every rank of a unit costs."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.numerics.grams import Grams, times
from slimrank.numerics.projector import Small, eigenvalues, eigenvectors
from slimrank.numerics.threads import one_thread
from slimrank.spectrum.decomposition import Decomposition, Route, decompose_weight

Timer = Callable[[], AbstractContextManager[None]]

LEAST = 1e-300  # a divisor at least, so that the error of a weight that maps all to 0 is no share of it


@dataclass(frozen=True)
class Curve:
    """What every rank 0..q costs, by the singular values (q,) of L^T W R in descending order.

    measured: (q + 1,) |L^T (W - W'_r) R~|_F / |L^T W R~|_F with R~ of held-out windows, None where there are none;
    damping: as Decomposition's; basis: what spares `projector_route` its eigenproblem; choice: what the metric settled
    by measuring.
    """

    values: Tensor
    measured: Tensor | None = None
    damping: float = 0.0
    basis: Tensor | None = None
    choice: float | None = None

    def losses(self) -> Tensor:
        """The squared error at every rank 0..q (q + 1,): the sum of the squared values that the cut drops."""
        squares = self.values.double().square().flip(0).cumsum(0).flip(0)
        return torch.cat([squares, squares.new_zeros(1)])

    def loss(self, rank: int) -> float:
        """The squared error at a rank."""
        return self.losses()[rank].item()

    def relative(self, rank: int) -> float:
        """The error's share of the output's norm in the metric."""
        losses = self.losses()
        return share(losses[rank].item(), losses[0].item())


def share(loss: float, whole: float) -> float:
    """The error's share of the output's norm, from their squares."""
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
    """The curve of W (m, n) under `grams`, measured under the right one of `held_out`, the left one being the same.

    The projector route needs no more than the small eigenproblem: without `bases` its values alone, whose squares' sums
    are good to 5e-5 (see Small), and for the measure vectors in float32, unless m > n (see Small.left_out).
    timer: around the measuring.
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


def curve_of(weight: Tensor, found: Decomposition, held_out: Grams | None) -> Curve:
    """The curve that a decomposition of W (m, n) gives, by whatever route it was found, measured under `held_out`."""
    measured = None if held_out is None else _expansion_shares(weight.double(), found, held_out)
    return Curve(found.values, measured, found.damping)


def _expansion_shares(weight: Tensor, found: Decomposition, grams: Grams) -> Tensor:
    """The share for W - sum_{i < r} l_i r_i at every r, of vectors that need not be orthogonal in these Grams."""
    left, right = grams.left, grams.right
    weighted = times(left, found.left)
    overlaps = (found.left.T @ weighted) * (found.right @ times(right, found.right.T))
    alone = (times(right, weight.T) @ weighted * found.right.T).sum(0)
    total = (times(left, weight) * times(right, weight.T).T).sum()
    both = overlaps.cumsum(0).cumsum(1).diagonal()
    losses = total - torch.cat([both.new_zeros(1), 2 * alone.cumsum(0) - both])
    return (losses / total.clamp_min(LEAST)).clamp_min(0).sqrt()
