"""One budget for the whole model: every rank of every linear is bought where it saves most loss per stored number."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.hull import Curve, Floats, sweep
from slimrank.allocate.prices import agreement, corrected_losses, measure
from slimrank.errors import UsageError


class Nats(Allocator):
    """Minimises the sum of all predicted losses within the budget, dense linears included.

    The losses must be in one unit for all linears, such as the nats of the two-sided metric.

    calibrate: at how many ranks of each linear the true KL divergence is measured, all others being dense, to correct
    the scale and exponent of its predicted loss; 0 to trust the prediction. windows: how many it is measured on.
    """

    name: Literal["nats"] = "nats"

    calibrate: Annotated[int, Field(ge=0)] = 0
    windows: Annotated[int, Field(ge=1)] = 16

    @property
    def whole_model(self) -> bool:
        """It measures."""
        return self.calibrate > 0

    def allocate(self, problem: Problem) -> Allocation:
        """A sweep over the lower convex hulls of the linears' (cost, loss) curves."""
        losses = {name: spectrum.losses().cpu().numpy() for name, spectrum in problem.spectrum.linears.items()}
        ranks = spend(problem, losses)
        if not self.calibrate:
            return Allocation(ranks)
        readings = measure(problem, losses, ranks, points=self.calibrate, windows=self.windows)
        corrected = {name: corrected_losses(losses[name], *readings[name]) for name in losses}
        return Allocation(spend(problem, corrected), (agreement(readings),))


def spend(problem: Problem, losses: dict[str, Floats]) -> Ranks:
    """The ranks that minimise the summed losses, given by linear at every rank 0..q.

    Raises:
        UsageError: if the least ranks are over the budget.
    """
    options = {name: choices(problem, name, curve) for name, curve in losses.items()}
    curves = {name: Curve.of(costs, losses) for name, (_, costs, losses) in options.items()}
    least = sum(curve.costs[0] for curve, _ in curves.values())
    if least > problem.budget:
        raise UsageError(
            f"--keep {problem.keep} leaves {problem.budget} parameters and the least ranks of all linears need "
            f"{least:.0f}: raise --keep above {least / problem.dense:.4f}."
        )
    chosen = sweep([curve for curve, _ in curves.values()], problem.budget)
    return {
        name: options[name][0][places[choice]]
        for (name, (_, places)), choice in zip(curves.items(), chosen, strict=True)
    }


def choices(problem: Problem, name: str, losses: Floats) -> tuple[list[int | None], Floats, Floats]:
    """A linear's ranks with their costs and losses, None for dense last; what costs as much as dense is left out."""
    shape, unit = problem.spectrum.linears[name].shape, problem.form.multiple
    dense, full = shape[0] * shape[1], min(shape)
    costs = {rank: problem.form.cost(shape, rank) for rank in range(min(unit, full), full + 1, unit)}
    ranks = [rank for rank, cost in costs.items() if cost < dense]
    return [*ranks, None], np.array([*(costs[rank] for rank in ranks), dense], float), np.array([*losses[ranks], 0.0])
