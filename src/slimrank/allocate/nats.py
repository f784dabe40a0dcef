"""One budget for the whole model: every rank of every linear is bought where it saves most loss per stored number."""

from dataclasses import replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.choices import Choices, sums
from slimrank.allocate.hull import Floats, sweep
from slimrank.allocate.prices import agreement, corrected_losses, measure
from slimrank.errors import UsageError
from slimrank.model.units import Unit, described

Losses = dict[Unit, Floats]  # at every rank


class Nats(Allocator):
    """Minimises the sum of all predicted losses within the budget, dense linears included.

    The losses must be in one unit for all linears, such as the nats of the two-sided metric. Where the form may make
    one factorisation of linears that share an input, both ways stand in the sweep: each linear by itself, and all as
    one.

    gain: the share by which one factorisation must lower the linears' loss, since refiners that move right factors
    alone have fewer numbers to move in it.

    calibrate: at how many ranks of each linear the true KL divergence is measured, all others being dense, to correct
    the scale and exponent of its predicted loss; 0 to trust the prediction. windows: how many it is measured on.
    """

    name: Literal["nats"] = "nats"

    gain: float = Field(0.05, ge=0, lt=1)

    calibrate: Annotated[int, Field(ge=0)] = 0
    windows: Annotated[int, Field(ge=1)] = 16

    @property
    def stacks(self) -> bool:
        """It does."""
        return True

    @property
    def measures(self) -> bool:
        """Where predictions are to be corrected."""
        return self.calibrate > 0

    def allocate(self, problem: Problem) -> Allocation:
        """A sweep over the lower convex hulls of the linears' (cost, loss) curves."""
        curves = {**problem.curves, **problem.spectra.stacks}
        losses = {unit: curve.losses().cpu().numpy() for unit, curve in curves.items()}
        allocation = spend(problem, losses, self.gain)
        if not self.calibrate:
            return allocation
        readings = measure(problem, losses, allocation.ranks, points=self.calibrate, windows=self.windows)
        corrected = {unit: corrected_losses(losses[unit], *readings[unit]) for unit in losses}
        allocation = spend(problem, corrected, self.gain)
        return replace(allocation, notes=(agreement(readings), *allocation.notes))


def spend(problem: Problem, losses: Losses, gain: float) -> Allocation:
    """What minimises the summed losses, given at every rank 0..q, with that of a unit of several / (1 - gain).

    Raises:
        UsageError: if the least ranks are over the budget.
    """
    stack_of = {name: stack for stack in problem.spectra.stacks for name in stack.names}
    members: dict[Unit, list[Unit]] = {}
    for unit in problem.curves:
        members.setdefault(stack_of.get(unit.leader, unit), []).append(unit)
    found = [
        sums([alone(problem, one, losses) for one in units]).beside(as_one(problem, unit, losses, gain))
        if len(units) > 1
        else alone(problem, unit, losses)
        for unit, units in members.items()
    ]
    curves, options = zip(*(choices.efficient() for choices in found), strict=True)
    least = sum(curve.costs[0] for curve in curves)
    if least > problem.budget:
        raise UsageError(
            f"--keep {problem.keep} leaves {problem.budget} parameters and the least ranks of all linears need "
            f"{least:.0f}: raise --keep above {least / problem.dense:.4f}."
        )
    places = sweep(list(curves), problem.budget)
    ranks = {u: r for choices, place in zip(options, places, strict=True) for u, r in choices.ranks[place].items()}
    return Allocation(ranks, notes(ranks))


def notes(ranks: Ranks) -> tuple[str, ...]:
    """A sentence on which linears became one factorisation."""
    several = [unit for unit in ranks if len(unit.names) > 1]
    return (f"Factorised together, sharing one input factor: {described(several)}.",) if several else ()


def alone(problem: Problem, unit: Unit, losses: Losses) -> Choices:
    """A linear's ranks with their costs and losses, None for dense last; what costs as much as dense is left out."""
    dense = Choices(np.array([float(unit.parameters)]), np.zeros(1), [{unit: None}])
    return by_rank(problem, unit, losses[unit]).beside(dense)


def as_one(problem: Problem, unit: Unit, losses: Losses, gain: float) -> Choices:
    """A unit's ranks as one factorisation, its losses made larger by what it has to gain."""
    return by_rank(problem, unit, losses[unit] / (1 - gain))


def by_rank(problem: Problem, unit: Unit, losses: Floats) -> Choices:
    """A unit at every rank that costs less than dense."""
    multiple, full = problem.form.multiple, unit.full_rank
    costs = {rank: problem.cost(unit, rank) for rank in range(min(multiple, full), full + 1, multiple)}
    ranks = [rank for rank, cost in costs.items() if cost < unit.parameters]
    return Choices(np.array([costs[rank] for rank in ranks], float), losses[ranks], [{unit: rank} for rank in ranks])
