"""What a group of linears may become: each its own factorisation, or all of them one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from slimrank.allocate.base import Ranks
from slimrank.allocate.hull import Curve, Floats, lower_hull


@dataclass(frozen=True)
class Choices:
    """What linears may become, by cost (c,) and loss (c,): a rank for each, and whether they are joined at it."""

    costs: Floats
    losses: Floats
    ranks: Sequence[Ranks]
    joined: Sequence[bool]

    def efficient(self) -> tuple[Curve, "Choices"]:
        """Those that no cheaper one beats, as a curve and as they are, in the order of their costs."""
        curve, places = Curve.of(self.costs, self.losses)
        kept = [self.ranks[place] for place in places], [self.joined[place] for place in places]
        return curve, Choices(curve.costs, curve.losses, *kept)

    def beside(self, other: "Choices") -> "Choices":
        """These or the other ones."""
        costs, losses = (np.concatenate(both) for both in ((self.costs, other.costs), (self.losses, other.losses)))
        return Choices(costs, losses, [*self.ranks, *other.ranks], [*self.joined, *other.joined])


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
    return Choices(costs, losses, ranks, [False] * len(found))
