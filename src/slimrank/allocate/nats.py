"""One budget for the whole model: ranks go where they save the most loss per parameter."""

from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.candidates import Candidates, summary
from slimrank.allocate.choices import Choices, grouped, ranks_of, sums
from slimrank.allocate.hull import Floats, sweep
from slimrank.allocate.measure import holds
from slimrank.allocate.prices import measure, ratio, told
from slimrank.allocate.stored import Cost, Options
from slimrank.calibrate.needs import Holds, Work
from slimrank.errors import UsageError
from slimrank.model.units import Unit, described
from slimrank.rounding.grid import Grid
from slimrank.texts.windows import Windows

Losses = dict[Unit, Floats]  # (q + 1,), at every rank 0..q
TYPES = 7  # of linears in most models, for the estimate before a run


class Nats(Allocator):
    """Minimises the summed predicted losses within the budget; a linear may also stay dense.

    The losses must have the same unit for all linears, such as the nats of the two-sided metric. Linears that share an
    input compete both ways, each factorised alone and all together, if the form can factorise them together.

    gain: the share by which factorising together must lower the loss, since the linears then share one right factor.
    calibrate: whether the ranks are chosen a second time, every linear's losses multiplied by measured KL over the
    predicted loss of all linears of its type, which needs the whole model in memory.

    Under a budget of bytes or seconds every linear may also be rounded, dense or as two factors. widths: bits of a
    number, those for which there are kernels by default, 2 and 3 where size alone counts; groups: inputs that share a
    scale in fewer than 8 bits, where a row has one; ends: bits of embedding and head under a budget of bytes, 16 for
    their own floats.
    """

    spends: ClassVar[bool] = True

    name: Literal["nats"] = "nats"

    gain: float = Field(0.05, ge=0, lt=1)
    calibrate: bool = False
    widths: tuple[Literal[2, 3, 4, 8], ...] = (4, 8)
    groups: tuple[Annotated[int, Field(ge=8)], ...] = (32, 64, 128)

    ends: Annotated[tuple[Literal[4, 8, 16], ...], Field(min_length=1)] = (4, 8)

    @property
    def end_widths(self) -> tuple[int, ...]:
        """The option `ends`."""
        return self.ends

    @property
    def pricing(self) -> tuple[Grid, ...]:
        """Every width with every group, a whole row in 8 bits."""
        return tuple(
            grid for bits in self.widths for grid in ([Grid(8)] if bits == 8 else [Grid(bits, g) for g in self.groups])
        )

    @property
    def stacks(self) -> bool:
        """True: linears that share an input may be factorised together."""
        return True

    @property
    def measures(self) -> bool:
        """Whether predictions are corrected by measured KL."""
        return self.calibrate

    def work(self, windows: Windows, linears: int) -> Work:
        """A model for every type of linear, where predictions are corrected, and the dense one."""
        models = (TYPES + 1) * self.calibrate
        return Work(models * windows.held_out.numel(), blocks=1, head=1)

    def holds(self, windows: Windows) -> Holds:
        """Nothing, unless predictions are corrected: then the states before every block, and probabilities."""
        return holds(windows.held_out) if self.measures else Holds()

    def allocate(self, problem: Problem) -> Allocation:
        """The ranks of a sweep over the lower convex hulls of the (cost, loss) curves, with notes."""
        curves = {**problem.curves, **problem.spectra.stacks}
        losses = {unit: curve.losses().cpu().numpy() for unit, curve in curves.items()}
        allocation = spend(problem, losses, self.gain)
        if not self.calibrate:
            return allocation
        readings = measure(problem, losses, allocation.ranks)
        corrected = {unit: own * ratio(problem, unit, readings) for unit, own in losses.items()}
        allocation = spend(problem, corrected, self.gain)
        return replace(allocation, notes=(told(readings), *allocation.notes))

    def candidates(self, problem: Problem, cost: Cost) -> Candidates:
        """Every unit as floats, rounded, cut, or cut and rounded, on the grids of which the cost is known."""
        if self.calibrate:
            raise UsageError("allocate.calibrate corrects a budget of parameters: leave it false, or give --keep.")
        grids = [grid for grid in self.pricing if cost.knows(grid)]
        return Candidates.of(problem.spectra, Options(problem.form, grids, cost), self.gain)


def spend(problem: Problem, losses: Losses, gain: float) -> Allocation:
    """The ranks that minimise the summed losses, those of a unit of several linears taken as loss / (1 - gain).

    Raises:
        UsageError: if the lowest ranks are over the budget.
    """
    options = [
        sums([alone(problem, single, losses) for single in singles]).beside(together(problem, unit, losses, gain))
        if len(singles) > 1
        else alone(problem, unit, losses)
        for unit, singles in grouped(problem.curves, problem.spectra.stacks).items()
    ]
    curves, efficient = zip(*(choices.efficient() for choices in options), strict=True)
    least = sum(curve.costs[0] for curve in curves)
    if least > problem.budget:
        raise UsageError(
            f"--keep {problem.keep} leaves {problem.budget} parameters and the lowest ranks of all linears need "
            f"{least:.0f}: raise --keep above {least / problem.dense:.4f}."
        )
    places = sweep(list(curves), problem.budget)
    ranks = {u: r for choices, place in zip(efficient, places, strict=True) for u, r in choices.made[place].items()}
    return Allocation(ranks, notes(ranks))


def spend_on(candidates: Candidates, budget: float) -> Allocation:
    """How every unit is stored within a budget of bytes or seconds, which is the candidates' least or more."""
    stored = candidates.within(budget)
    ranks = {unit: one.rank for unit, one in stored.items()}
    rounded = {unit: one.grid for unit, one in stored.items() if one.grid is not None}
    return Allocation(ranks, (f"Stored: {summary(stored)}.", *notes(ranks)), rounded)


def notes(ranks: Ranks) -> tuple[str, ...]:
    """Sentences that name the linears factorised together and those of rank 0, if there are any."""
    several = [unit for unit in ranks if len(unit.names) > 1 and not unit.shared]
    common = [unit for unit in ranks if unit.shared]
    together = [f"Factorised together, with one right factor: {described(several)}."] if several else []
    together += [f"Shared by all experts of a layer: one factor of {described(common)}."] if common else []
    gone = [unit for unit, rank in ranks.items() if rank == 0]
    return (*together, *([f"Rank 0, which the budget needs more elsewhere: {described(gone)}."] if gone else []))


def alone(problem: Problem, unit: Unit, losses: Losses) -> Choices[int | None]:
    """The options of a linear factorised alone: the ranks cheaper than dense, and dense (None)."""
    uncut: dict[Unit, int | None] = {unit: None}
    dense = Choices(np.array([float(unit.parameters)]), np.zeros(1), [uncut])
    return by_rank(problem, unit, losses[unit]).beside(dense)


def together(problem: Problem, unit: Unit, losses: Losses, gain: float) -> Choices[int | None]:
    """The ranks of a unit of several linears, its losses divided by 1 - gain."""
    return by_rank(problem, unit, losses[unit] / (1 - gain))


def by_rank(problem: Problem, unit: Unit, losses: Floats) -> Choices[int | None]:
    """The options of a unit: every rank, a multiple of the form's, that costs less than dense; of an expert 0 too."""
    costs = {rank: problem.cost(unit, rank) for rank in ranks_of(unit, problem.form.multiple)}
    ranks = [rank for rank, cost in costs.items() if cost < unit.parameters]
    return Choices(np.array([costs[rank] for rank in ranks], float), losses[ranks], [{unit: rank} for rank in ranks])
