"""The options of linears that share an input: each factorised alone, or all of them as one unit."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Generic, TypeVar

import numpy as np

from slimrank.allocate.hull import Floats, Tradeoff, lower_hull
from slimrank.allocate.listed import Listed
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
        return curve, Choices(curve.costs, curve.losses, Listed(len(places), lambda index: self.made[places[index]]))

    def beside(self, other: "Choices[T]") -> "Choices[T]":
        """The union of both sets of options."""
        costs, losses = (np.concatenate(both) for both in ((self.costs, other.costs), (self.losses, other.losses)))
        own, count = len(self.made), len(costs)
        made = Listed(count, lambda index: self.made[index] if index < own else other.made[index - own])
        return Choices(costs, losses, made)


def grouped(curves: Iterable[Unit], stacks: Iterable[Unit]) -> dict[Unit, list[Unit]]:
    """The single linears by the unit of several that they may be factorised together in, or each by itself."""
    stack_of = {name: stack for stack in stacks for name in stack.names}
    members: dict[Unit, list[Unit]] = {}
    for unit in curves:
        members.setdefault(stack_of.get(unit.leader, unit), []).append(unit)
    return members


def ranks_of(unit: Unit, multiple: int) -> list[int]:
    """The ranks of a unit in floats: multiples of a number, and the full one; 0 too for an expert's matrix."""
    full = unit.full_rank
    return [*([0] if unit.mixture else []), *range(min(multiple, full), full + 1, multiple)]


def sums(members: Sequence[Choices[T]]) -> Choices[T]:
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

    def at(vertex: int) -> dict[Unit, T]:
        places = dict.fromkeys(range(len(members)), 0) | {index: place for _, index, _, place in steps[:vertex]}
        return {unit: one for index, place in places.items() for unit, one in efficient[index].made[place].items()}

    return Choices(costs, losses, Listed(len(steps) + 1, at))
