"""A budget of seconds: a model that is so many times as fast as the dense one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slimrank.allocate import Allocation, Problem
from slimrank.allocate.candidates import Candidates
from slimrank.allocate.nats import spend_on
from slimrank.allocate.seconds import Seconds, too_fast
from slimrank.allocate.stored import Stored
from slimrank.budget.ends import best_of_widths, head_bits
from slimrank.budget.times import Timed
from slimrank.model.units import Unit
from slimrank.plan import LinearPlan, Time
from slimrank.recipe import Recipe
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Pricing
from slimrank.spectrum.spectra import Spectra

SLACK = 1e-9  # of the whole, which sums in another order may differ by


@dataclass(frozen=True)
class TimeBudget:
    """speedup: of the dense model's seconds over the plan's, at least, for `tokens` at once; dtype: of its floats.

    grids: that linears may have; widths: those that embedding and head may have, 16 to be left as they are.
    """

    speedup: float
    tokens: int
    dtype: str
    timed: Timed
    grids: tuple[Grid, ...] = ()
    widths: tuple[int, ...] = (16,)

    @property
    def identity(self) -> dict[str, Any]:
        """What a run's results depend on."""
        return {"speedup": self.speedup, "tokens": self.tokens}

    def pricing(self, recipe: Recipe) -> Pricing | None:
        """What rounding has to be priced: the grids that were timed."""
        return replace(recipe.pricing, grids=self.grids) if recipe.pricing and self.grids else None

    def spend(self, problem: Problem, recipe: Recipe) -> "SpentTime":
        """What loses least within the budget: the best of the widths that embedding and head may have.

        Raises:
            UsageError: with the fastest that is possible, if that is less.
        """
        cost = Seconds(recipe.form, self.timed.times)
        candidates = recipe.allocate.candidates(problem, cost)
        best, points = best_of_widths(
            problem, self.widths, lambda ends, loss: self.spend_with(problem.spectra, cost, candidates, ends, loss)
        )
        frontier = [(self.timed.dense / taken, loss) for taken, loss in reversed(points)]
        return replace(best, time=best.time.model_copy(update={"frontier": frontier}))

    def spend_with(
        self, spectra: Spectra, cost: Seconds, candidates: Candidates, ends: dict[str, int], of_ends: float
    ) -> "SpentTime":
        """What loses least with the ends as they are given; of_ends: what these lose.

        Linears that no calibration token reached stay dense.
        """
        model, timed = spectra.model, self.timed
        stay = [unit for unit in model.units.values() if unit not in spectra.curves]
        rest = timed.rest + sum(timed.times.dense(unit.shapes) for unit in stay)
        fixed = rest + timed.heads.get(head_bits(model, ends), 0.0)
        left = timed.dense / self.speedup * (1 + SLACK) - fixed
        if left < candidates.least:
            raise too_fast(timed.dense, fixed + candidates.least, self.speedup)
        allocation = spend_on(candidates, left)
        ranks, grids = allocation.ranks, allocation.grids
        time = Time(
            asked=self.speedup,
            tokens=self.tokens,
            machine=timed.machine,
            dtype=self.dtype,
            dense=timed.dense,
            rest=rest,
            used=fixed + seconds(cost, ranks, grids),
            ends=of_ends,
            heads=dict(timed.heads),
            seconds={name: list(points) for name, points in timed.times.lines.items()},
        )
        points = [(fixed + point.cost, point.loss + of_ends) for point in candidates.frontier]
        loss = sum(spectra.curve(unit).stored(rank, grids.get(unit)) for unit, rank in ranks.items()) + of_ends
        return SpentTime(replace(allocation, notes=(*timed.notes, *allocation.notes)), time, ends, loss, points)


@dataclass(frozen=True)
class SpentTime:
    """An allocation, the seconds of its model, the bits of its ends by name, and the loss expected of all.

    points: seconds of the whole model and the loss of the best plan that takes them.
    """

    allocation: Allocation
    time: Time
    ends: dict[str, int]
    loss: float
    points: list[tuple[float, float]]

    @property
    def recorded(self) -> dict[str, Any]:
        """What the plan says of it."""
        return {"time": self.time, "ends": self.ends}

    def counted(self, plans: dict[str, LinearPlan]) -> dict[str, LinearPlan]:
        """The plans as they are: seconds are those of units."""
        return plans


def seconds(cost: Seconds, ranks: Mapping[Unit, int | None], grids: Mapping[Unit, Grid]) -> float:
    """Of all units."""
    return sum(cost.of(unit, Stored(rank, grids.get(unit))) for unit, rank in ranks.items())
