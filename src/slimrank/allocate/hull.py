"""Ranks under one budget: a greedy sweep over the lower convex hulls of all (cost, loss) curves."""

from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tradeoff:
    """The options of one unit: costs (c,) strictly ascending, losses (c,) strictly descending."""

    costs: Floats
    losses: Floats

    @classmethod
    def of(cls, costs: Floats, losses: Floats) -> tuple["Tradeoff", NDArray[np.int64]]:
        """The Pareto-optimal options by ascending cost, and their indices in `costs`."""
        order = np.lexsort((losses, costs))
        best = np.minimum.accumulate(np.concatenate([[np.inf], losses[order]]))
        places = order[losses[order] < best[:-1]]
        return cls(costs[places], losses[places]), places


def lower_hull(costs: Floats, losses: Floats) -> list[int]:
    """Indices of the lower convex hull of points with ascending costs, first and last included."""
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
    """The index of one option for each curve, with little summed loss at a summed cost within the budget.

    Hull steps are taken in the order of loss saved per parameter, optimal for the Lagrangian at the last step's price;
    once the next one no longer fits, the rest is spent on any option that does, the best saving per parameter
    first. The cheapest options of all curves must fit together.
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
    return filled(curves, chosen, left)


def filled(curves: list[Tradeoff], chosen: list[int], left: float) -> list[int]:
    """The options after spending what is left on any that fit, the best saving per cost first; changes `chosen`."""
    while True:
        gains = [_best_step(curve, at, left) for curve, at in zip(curves, chosen, strict=True)]
        index = min(range(len(gains)), key=lambda i: gains[i][0], default=0)
        if not gains or gains[index][1] == chosen[index]:
            return chosen
        target = gains[index][1]
        left -= curves[index].costs[target] - curves[index].costs[chosen[index]]
        chosen[index] = target


def _best_step(curve: Tradeoff, at: int, left: float) -> tuple[float, int]:
    """The affordable step from `at` with the least slope d loss / d cost, and its target; (inf, at) if none fits."""
    costs, losses = curve.costs[at + 1 :] - curve.costs[at], curve.losses[at + 1 :] - curve.losses[at]
    affordable = int(np.searchsorted(costs, left, side="right"))
    if not affordable:
        return np.inf, at
    slopes = losses[:affordable] / costs[:affordable]
    best = int(slopes.argmin())
    return float(slopes[best]), at + 1 + best
