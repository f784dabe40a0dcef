"""The options of linears that share an input: each factorised alone, or all of them as one unit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from slimrank.allocate.hull import Floats, Tradeoff, lower_hull
from slimrank.model.units import Unit

T = TypeVar("T")


@dataclass(frozen=True)
class Choices(Generic[T]):
    """c options: their costs (c,) in parameters or bytes, their losses (c,), and what each makes of which unit.

    T is a rank, None for dense, or how a unit is stored.
    """

    costs: Floats
    losses: Floats
    made: Sequence[Mapping[Unit, T]]

    def efficient(self) -> tuple[Tradeoff, "Choices[T]"]:
        """The Pareto-optimal options, by ascending cost, as a curve and as Choices."""
        curve, places = Tradeoff.of(self.costs, self.losses)
        return curve, Choices(curve.costs, curve.losses, [self.made[place] for place in places])

    def beside(self, other: "Choices[T]") -> "Choices[T]":
        """The union of both sets of options."""
        costs, losses = (np.concatenate(both) for both in ((self.costs, other.costs), (self.losses, other.losses)))
        return Choices(costs, losses, [*self.made, *other.made])


def sums(members: Sequence[Choices[T]]) -> Choices[T]:
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
    made = [
        {unit: one for own, i in zip(efficient, vertex, strict=True) for unit, one in own.made[i].items()}
        for vertex in vertices
    ]
    costs, losses = (
        np.array([sum(values[i] for values, i in zip(each, vertex, strict=True)) for vertex in vertices])
        for each in ([curve.costs for curve in curves], [curve.losses for curve in curves])
    )
    return Choices(costs, losses, made)
