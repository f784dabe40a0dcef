"""One budget for the whole model: every rank of every linear is bought where it saves most loss per stored number."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.budget import cost, joint_costs
from slimrank.allocate.hull import Floats, sweep
from slimrank.allocate.joined import Choices, sums
from slimrank.allocate.prices import agreement, corrected_losses, measure
from slimrank.errors import UsageError
from slimrank.run.session import Group

Losses = dict[Group, Floats]  # by linear, and by group as one, at every rank


class Nats(Allocator):
    """Minimises the sum of all predicted losses within the budget, dense linears included.

    The losses must be in one unit for all linears, such as the nats of the two-sided metric. Where the form joins
    linears that share an input, every such group is swept over with both ways, each linear by itself and all as one.

    gain: the share by which joining must lower a group's loss, since refiners that move right factors alone have fewer
    numbers to move in a group.

    calibrate: at how many ranks of each linear the true KL divergence is measured, all others being dense, to correct
    the scale and exponent of its predicted loss; 0 to trust the prediction. windows: how many it is measured on.
    """

    name: Literal["nats"] = "nats"
    joins: ClassVar[bool] = True

    gain: float = Field(0.05, ge=0, lt=1)

    calibrate: Annotated[int, Field(ge=0)] = 0
    windows: Annotated[int, Field(ge=1)] = 16

    @property
    def whole_model(self) -> bool:
        """It measures."""
        return self.calibrate > 0

    def allocate(self, problem: Problem) -> Allocation:
        """A sweep over the lower convex hulls of the linears' (cost, loss) curves."""
        spectra = {(name,): spectrum for name, spectrum in problem.spectrum.linears.items()} | dict(problem.joint)
        losses = {group: spectrum.losses().cpu().numpy() for group, spectrum in spectra.items()}
        allocation = spend(problem, losses, self.gain)
        if not self.calibrate:
            return allocation
        readings = measure(problem, losses, allocation.ranks, points=self.calibrate, windows=self.windows)
        corrected = {group: corrected_losses(losses[group], *readings[group]) for group in losses}
        allocation = spend(problem, corrected, self.gain)
        return replace(allocation, notes=(agreement(readings), *allocation.notes))


def spend(problem: Problem, losses: Losses, gain: float) -> Allocation:
    """What minimises the summed losses, given at every rank 0..q, with that of a joined group / (1 - gain).

    Raises:
        UsageError: if the least ranks are over the budget.
    """
    groups = {name: group for group in problem.joint for name in group}
    found: dict[Group, Choices] = {}
    names = list(problem.spectrum.linears)
    for group in dict.fromkeys(groups.get(name, (name,)) for name in names):
        apart = [alone(problem, name, losses) for name in group]
        found[group] = sums(apart).beside(joined(problem, group, losses, gain)) if len(group) > 1 else apart[0]
    curves, options = zip(*(choices.efficient() for choices in found.values()), strict=True)
    least = sum(curve.costs[0] for curve in curves)
    if least > problem.budget:
        raise UsageError(
            f"--keep {problem.keep} leaves {problem.budget} parameters and the least ranks of all linears need "
            f"{least:.0f}: raise --keep above {least / problem.dense:.4f}."
        )
    ranks: Ranks = {}
    chosen: list[Group] = []
    for group, choices, place in zip(found, options, sweep(list(curves), problem.budget), strict=True):
        ranks |= choices.ranks[place]
        chosen += [group] if choices.joined[place] else []
    return Allocation({name: ranks[name] for name in names}, notes(problem, chosen), tuple(chosen))


def notes(problem: Problem, joined: Sequence[Group]) -> tuple[str, ...]:
    """A sentence on what became one factorisation."""
    counts = Counter(problem.joint[group].role for group in joined)
    told = ", ".join(f"{role} of {count} block{'s' * (count > 1)}" for role, count in counts.items())
    return (f"Factorised as one, which loses less there: {told}.",) if joined else ()


def alone(problem: Problem, name: str, losses: Losses) -> Choices:
    """A linear's ranks with their costs and losses, None for dense last; what costs as much as dense is left out."""
    shape = problem.spectrum.linears[name].shape
    costs = {rank: problem.form.cost(shape, rank) for rank in ranks_of(problem, shape)}
    choices = of(costs, losses[name,], shape[0] * shape[1], (name,), joined=False)
    dense = Choices(np.array([float(shape[0] * shape[1])]), np.zeros(1), [{name: None}], [False])
    return choices.beside(dense)


def joined(problem: Problem, group: Group, losses: Losses, gain: float) -> Choices:
    """A group's ranks as one factorisation, its losses made larger by what it has to gain."""
    ranks, dense = ranks_of(problem, problem.joint[group].shape), sum(cost(problem, name, None) for name in group)
    costs = {rank: sum(joint_costs(problem, group, rank)) for rank in ranks}
    return of(costs, losses[group] / (1 - gain), dense, group, joined=True)


def ranks_of(problem: Problem, shape: tuple[int, int]) -> range:
    """The ranks that the form may give a matrix of this shape."""
    unit, full = problem.form.multiple, min(shape)
    return range(min(unit, full), full + 1, unit)


def of(costs: dict[int, int], losses: Floats, dense: int, group: Group, *, joined: bool) -> Choices:
    """A group's linears at the ranks that cost less than dense."""
    ranks = [rank for rank, cost in costs.items() if cost < dense]
    numbers = np.array([costs[rank] for rank in ranks], float)
    return Choices(numbers, losses[ranks], [dict.fromkeys(group, rank) for rank in ranks], [joined] * len(ranks))
