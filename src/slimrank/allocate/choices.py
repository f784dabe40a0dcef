"""The options of linears that share an input: each factorised alone, or all of them as one unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slimrank.allocate.base import Ranks
from slimrank.allocate.hull import Floats, Tradeoff, lower_hull


@dataclass(frozen=True)
class Choices:
    """c options: their costs in parameters (c,), their losses (c,), and the ranks of the units that each stands for."""

    costs: Floats
    losses: Floats
    ranks: Sequence[Ranks]

    def efficient(self) -> tuple[Tradeoff, "Choices"]:
        """The Pareto-optimal options, by ascending cost, as a curve and as Choices."""
        curve, places = Tradeoff.of(self.costs, self.losses)
        return curve, Choices(curve.costs, curve.losses, [self.ranks[place] for place in places])

    def beside(self, other: "Choices") -> "Choices":
        """The union of both sets of options."""
        costs, losses = (np.concatenate(both) for both in ((self.costs, other.costs), (self.losses, other.losses)))
        return Choices(costs, losses, [*self.ranks, *other.ranks])


def sums(members: Sequence[Choices]) -> Choices:
    """The options of several linears each factorised alone: the lower hull of the sums of their options."""
    curves, efficient = zip(*(member.efficient() for member in members), strict=True)
    hulls = [lower_hull(curve.costs, curve.losses) for curve in curves]
    steps = [
        ((curve.losses[b] - curve.losses[a]) / (curve.costs[b] - curve.costs[a]), index, b)
        for index, (curve, hull) in enumerate(zip(curves, hulls, strict=True))
        for a, b in pairwise(hull)
    ]
    at = [0] * len(members)
    vertices = [tuple(at)]
    for _, index, place in sorted(steps):
        at[index] = place
        vertices.append(tuple(at))
    ranks = [
        {unit: rank for own, i in zip(efficient, vertex, strict=True) for unit, rank in own.ranks[i].items()}
        for vertex in vertices
    ]
    costs, losses = (
        np.array([sum(values[i] for values, i in zip(each, vertex, strict=True)) for vertex in vertices])
        for each in ([curve.costs for curve in curves], [curve.losses for curve in curves])
    )
    return Choices(costs, losses, ranks)
