"""What the linears of a unit may become: each its own factorisation, or all of them one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slimrank.allocate.base import Ranks
from slimrank.allocate.hull import Floats, Tradeoff, lower_hull


@dataclass(frozen=True)
class Choices:
    """What linears may become, by cost (c,) and loss (c,): each choice's ranks, of all linears as one or one by one."""

    costs: Floats
    losses: Floats
    ranks: Sequence[Ranks]

    def efficient(self) -> tuple[Tradeoff, "Choices"]:
        """Those that no cheaper one beats, as a curve and as they are, in the order of their costs."""
        curve, places = Tradeoff.of(self.costs, self.losses)
        return curve, Choices(curve.costs, curve.losses, [self.ranks[place] for place in places])

    def beside(self, other: "Choices") -> "Choices":
        """These or the other ones."""
        costs, losses = (np.concatenate(both) for both in ((self.costs, other.costs), (self.losses, other.losses)))
        return Choices(costs, losses, [*self.ranks, *other.ranks])


def sums(members: Sequence[Choices]) -> Choices:
    """What several linears may become, each by itself: the hull of the sums of their choices."""
    curves, kept = zip(*(member.efficient() for member in members), strict=True)
    hulls = [lower_hull(curve.costs, curve.losses) for curve in curves]
    steps = [
        ((curve.losses[b] - curve.losses[a]) / (curve.costs[b] - curve.costs[a]), index, b)
        for index, (curve, hull) in enumerate(zip(curves, hulls, strict=True))
        for a, b in pairwise(hull)
    ]
    at = [0] * len(members)
    found = [tuple(at)]
    for _, index, place in sorted(steps):
        at[index] = place
        found.append(tuple(at))
    ranks = [{n: r for one, i in zip(kept, places, strict=True) for n, r in one.ranks[i].items()} for places in found]
    costs, losses = (
        np.array([sum(values[i] for values, i in zip(each, places, strict=True)) for places in found])
        for each in ([curve.costs for curve in curves], [curve.losses for curve in curves])
    )
    return Choices(costs, losses, ranks)
