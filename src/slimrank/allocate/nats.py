"""One budget for the whole model: every rank of every linear is bought where it saves most loss per stored number."""

from typing import Literal

import numpy as np

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.hull import Curve, sweep
from slimrank.errors import UsageError
from slimrank.spectrum import LinearSpectrum


class Nats(Allocator):
    """Minimises the sum of all predicted losses within the budget, dense linears included.

    The losses must be in one unit for all linears, such as the nats of the two-sided metric.
    """

    name: Literal["nats"] = "nats"

    def allocate(self, problem: Problem) -> Allocation:
        """A sweep over the lower convex hulls of the linears' (cost, loss) curves."""
        spectra = problem.spectrum.linears
        options = {name: choices(problem, spectrum) for name, spectrum in spectra.items()}
        curves = {name: Curve.of(costs, losses) for name, (_, costs, losses) in options.items()}
        least = sum(curve.costs[0] for curve, _ in curves.values())
        if least > problem.budget:
            raise UsageError(
                f"--keep {problem.keep} leaves {problem.budget} parameters and the least ranks of all linears need "
                f"{least:.0f}: raise --keep above {least / problem.dense:.4f}."
            )
        chosen = sweep([curve for curve, _ in curves.values()], problem.budget)
        return Allocation(
            {
                name: options[name][0][places[choice]]
                for (name, (_, places)), choice in zip(curves.items(), chosen, strict=True)
            }
        )


def choices(problem: Problem, spectrum: LinearSpectrum) -> tuple[list[int | None], np.ndarray, np.ndarray]:
    """A linear's ranks with their costs and losses, None for dense last; what costs as much as dense is left out."""
    dense, unit, full = spectrum.shape[0] * spectrum.shape[1], problem.form.multiple, min(spectrum.shape)
    costs = {rank: problem.form.cost(spectrum.shape, rank) for rank in range(min(unit, full), full + 1, unit)}
    ranks = [rank for rank, cost in costs.items() if cost < dense]
    losses = spectrum.losses().cpu().numpy()[ranks]
    return [*ranks, None], np.array([*(costs[r] for r in ranks), dense], float), np.array([*losses, 0.0])
