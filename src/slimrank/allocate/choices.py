"""The options of linears that share an input: each factorised alone, or all of them as one unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slimrank.allocate.base import Ranks
from slimrank.allocate.hull import Floats, Tradeoff, lower_hull
from slimrank.allocate.listed import Listed


@dataclass(frozen=True)
class Choices:
    """c options: their costs in parameters (c,), their losses (c,), and the ranks of the units that each stands for."""

    costs: Floats
    losses: Floats
    ranks: Sequence[Ranks]

    def efficient(self) -> tuple[Tradeoff, "Choices"]:
        """The Pareto-optimal options, by ascending cost, as a curve and as Choices."""
        curve, places = Tradeoff.of(self.costs, self.losses)
        return curve, Choices(curve.costs, curve.losses, Listed(len(places), lambda index: self.ranks[places[index]]))

    def beside(self, other: "Choices") -> "Choices":
        """The union of both sets of options."""
        costs, losses = (np.concatenate(both) for both in ((self.costs, other.costs), (self.losses, other.losses)))
        own, count = len(self.ranks), len(costs)
        return Choices(
            costs, losses, Listed(count, lambda index: self.ranks[index] if index < own else other.ranks[index - own])
        )


def sums(members: Sequence[Choices]) -> Choices:
    """The options of several linears each factorised alone: the lower hull of the sums of their options."""
    curves, efficient = zip(*(member.efficient() for member in members), strict=True)
    hulls = [lower_hull(curve.costs, curve.losses) for curve in curves]
    steps = [
        ((curve.losses[b] - curve.losses[a]) / (curve.costs[b] - curve.costs[a]), index, a, b)
        for index, (curve, hull) in enumerate(zip(curves, hulls, strict=True))
        for a, b in pairwise(hull)
    ]
    steps.sort()
    costs, losses = (
        np.cumsum([sum(values[0] for values in each), *(each[i][b] - each[i][a] for _, i, a, b in steps)])
        for each in ([curve.costs for curve in curves], [curve.losses for curve in curves])
    )

    def at(vertex: int) -> Ranks:
        places = dict.fromkeys(range(len(members)), 0) | {index: place for _, index, _, place in steps[:vertex]}
        return {unit: rank for index, place in places.items() for unit, rank in efficient[index].ranks[place].items()}

    return Choices(costs, losses, Listed(len(steps) + 1, at))
