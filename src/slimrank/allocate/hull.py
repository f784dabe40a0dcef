"""Ranks under one budget: the lower convex hull of every matrix's (cost, loss) curve, and one sweep over them all."""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tradeoff:
    """One matrix's choices: costs (c,) strictly ascending, losses (c,) not ascending."""

    costs: Floats
    losses: Floats

    @classmethod
    def of(cls, costs: Floats, losses: Floats) -> tuple["Tradeoff", NDArray[np.int64]]:
        """The choices that no cheaper one beats, and their places in what was given."""
        order = np.lexsort((losses, costs))
        best = np.minimum.accumulate(np.concatenate([[np.inf], losses[order]]))
        places = order[losses[order] < best[:-1]]
        return cls(costs[places], losses[places]), places


def lower_hull(costs: Floats, losses: Floats) -> list[int]:
    """Places of the lower convex hull of points with ascending costs, first and last included."""
    hull: list[int] = []
    for i in range(len(costs)):
        while len(hull) > 1:
            a, b = hull[-2:]
            if (losses[b] - losses[a]) * (costs[i] - costs[a]) < (losses[i] - losses[a]) * (costs[b] - costs[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


def sweep(curves: list[Tradeoff], budget: float) -> list[int]:
    """One choice a curve, cost within the budget, loss the least that hull points give, then filled up.

    Hull steps are taken in the order of loss saved per number, which is the Lagrangian's solution for the price of the
    last one; where that no longer fits, any choice that does is taken, the best saving per number first. Every
    curve's cheapest choice must fit together.
    """
    hulls = [lower_hull(curve.costs, curve.losses) for curve in curves]
    chosen = [0] * len(curves)
    left = budget - sum(curve.costs[0] for curve in curves)

    def step(index: int, place: int) -> tuple[float, int, int]:
        a, b = hulls[index][place : place + 2]
        curve = curves[index]
        return (curve.losses[b] - curve.losses[a]) / (curve.costs[b] - curve.costs[a]), index, place + 1

    steps = [step(index, 0) for index, hull in enumerate(hulls) if len(hull) > 1]
    heapify(steps)
    while steps:
        _, index, place = heappop(steps)
        target, curve = hulls[index][place], curves[index]
        price = curve.costs[target] - curve.costs[chosen[index]]
        if price > left:
            break
        chosen[index], left = target, left - price
        if place + 1 < len(hulls[index]):
            heappush(steps, step(index, place))
    return _filled(curves, chosen, left)


def _filled(curves: list[Tradeoff], chosen: list[int], left: float) -> list[int]:
    while True:
        gains = [_best_step(curve, at, left) for curve, at in zip(curves, chosen, strict=True)]
        index = min(range(len(gains)), key=lambda i: gains[i][0], default=0)
        if not gains or gains[index][1] == chosen[index]:
            return chosen
        target = gains[index][1]
        left -= curves[index].costs[target] - curves[index].costs[chosen[index]]
        chosen[index] = target


def _best_step(curve: Tradeoff, at: int, left: float) -> tuple[float, int]:
    """The steepest affordable step from `at`: its slope, and where it leads; (inf, at) where there is none."""
    costs, losses = curve.costs[at + 1 :] - curve.costs[at], curve.losses[at + 1 :] - curve.losses[at]
    affordable = int(np.searchsorted(costs, left, side="right"))
    if not affordable:
        return np.inf, at
    slopes = losses[:affordable] / costs[:affordable]
    best = int(slopes.argmin())
    return float(slopes[best]), at + 1 + best
