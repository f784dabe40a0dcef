"""What a unit can be stored as, in predicted loss and in what it costs: bytes, or seconds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from slimrank.allocate.choices import Choices, ranks_of
from slimrank.factorize import Factorizer
from slimrank.model.units import Shape, Unit
from slimrank.rounding.grid import Grid
from slimrank.spectrum.curve import Curve

RANKS = 32
"""The step between ranks that kernels take well, in matrices of 16 times it or more."""


@dataclass(frozen=True)
class Stored:
    """How a unit is stored: its rank (None: dense) and the grid of its numbers (None: floats)."""

    rank: int | None = None
    grid: Grid | None = None


class Cost(Protocol):
    """What the units cost, in bytes or in seconds."""

    def of(self, unit: Unit, stored: Stored) -> float:
        """The cost of a unit that is stored so."""

    def knows(self, grid: Grid) -> bool:
        """Whether it can say what numbers on this grid cost."""

    def multiple(self, unit: Unit) -> int:
        """The step between the ranks that the unit may have in floats."""


@dataclass(frozen=True)
class Options:
    """The options of units under such a budget: the form of float factors, the grids, and the cost of all."""

    form: Factorizer
    grids: Sequence[Grid]
    cost: Cost

    def of_floats(self, unit: Unit, curve: Curve) -> Choices[Stored]:
        """The form at the ranks that the cost allows, where it takes less than dense."""
        losses, ranks = curve.losses().cpu().numpy(), ranks_of(unit, self.cost.multiple(unit))
        made = [Stored(rank) for rank in ranks]
        choices = self._choices(unit, made, [losses[rank] for rank in ranks])
        dense = self.cost.of(unit, Stored())
        kept = [place for place, cost in enumerate(choices.costs) if cost < dense]
        return Choices(choices.costs[kept], choices.losses[kept], [choices.made[place] for place in kept])

    def alone(self, unit: Unit, curve: Curve) -> Choices[Stored]:
        """All options of a linear that is stored by itself."""
        choices = self.of_floats(unit, curve).beside(self._choices(unit, [Stored()], [0.0]))
        losses = curve.losses().cpu().numpy()
        for grid in self.grids:
            prices = curve.prices[grid]
            made, costs = [Stored(None, grid)], [prices.dense]
            for rank in rank_grid(unit.shape):
                made.append(Stored(rank, grid))
                costs.append(losses[rank] + prices.factors[rank].item())
            choices = choices.beside(self._choices(unit, made, costs))
        return choices

    def _choices(self, unit: Unit, made: Sequence[Stored], losses: Sequence[float]) -> Choices[Stored]:
        costs = np.array([self.cost.of(unit, one) for one in made], float)
        return Choices(costs, np.array(losses, float), [{unit: one} for one in made])


def rank_step(shape: Shape) -> int:
    """The step between the ranks of W (m, n) that kernels take well: RANKS, less in small matrices."""
    step = RANKS
    while step > 1 and step * 16 > min(shape):
        step //= 2
    return step


def rank_grid(shape: Shape) -> range:
    """The ranks of rounded factors that take fewer numbers than W (m, n)."""
    rows, columns = shape
    step = rank_step(shape)
    return range(step, (rows * columns - 1) // (rows + columns) + 1, step)
