"""What a unit can be stored as, in bytes and in predicted loss."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from slimrank.allocate.choices import Choices, ranks_of
from slimrank.factorize import Factorizer
from slimrank.factorize.shared import form_for
from slimrank.forms import FORMS, Dense, LowRank
from slimrank.forms.quantized import stored_bytes
from slimrank.model.units import Shape, Unit
from slimrank.rounding.grid import Grid
from slimrank.spectrum.curve import Curve

HEADER = 92
"""Bytes of a tensor in a safetensors header beside its name, its offsets taken as long ones."""

RANKS = 32
"""Ranks of rounded factors are multiples of this number, which kernels ask for, in matrices of 16 times it or more."""


@dataclass(frozen=True)
class Stored:
    """How a unit is stored: its rank (None: dense) and the grid of its numbers (None: floats)."""

    rank: int | None = None
    grid: Grid | None = None


@dataclass(frozen=True)
class Options:
    """The options of units under a budget of bytes: the form of float factors, bytes of a float, and the grids."""

    form: Factorizer
    itemsize: int
    grids: Sequence[Grid]

    def bytes(self, unit: Unit, stored: Stored) -> int:
        """What the unit's tensors take, their places in the file's header included, without biases."""
        rank, grid = stored.rank, stored.grid
        if rank is None and grid is None:
            return unit.parameters * self.itemsize + header(unit, ("weight",))
        if grid is None:
            made = form_for(self.form, unit)
            names = {entry["form"] for entry in made.entries(unit.shapes, rank or 1)}
            tensors = (
                "weight",
                *(name for form in names for name in FORMS[form].stored_names() if "scale" not in name),
            )
            return made.cost(unit.shapes, rank or 0) * self.itemsize + header(unit, tensors)
        form = Dense if rank is None else LowRank
        payload = sum(
            stored_bytes(*shape, grid.bits, grid.group, self.itemsize) for shape in factor_shapes(unit.shape, rank)
        )
        return payload + header(unit, ("weight", *form.stored_names()))

    def of_floats(self, unit: Unit, curve: Curve) -> Choices[Stored]:
        """Dense and, where it takes less, the form at every rank that is a multiple of the form's."""
        losses, ranks = curve.losses().cpu().numpy(), ranks_of(unit, self.form.multiple)
        made = [Stored(rank) for rank in ranks]
        choices = self._choices(unit, made, [losses[rank] for rank in ranks])
        dense = self.bytes(unit, Stored())
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
        costs = np.array([self.bytes(unit, one) for one in made], float)
        return Choices(costs, np.array(losses, float), [{unit: one} for one in made])


def header(unit: Unit, tensors: Sequence[str]) -> int:
    """Bytes of the unit's tensors in a safetensors header, a little more than they will take."""
    return sum(HEADER + len(name) + len(tensor) for name in unit.names for tensor in tensors)


def factor_shapes(shape: Shape, rank: int | None) -> list[Shape]:
    """The shapes of V and U, or of W where there is no rank."""
    rows, columns = shape
    return [shape] if rank is None else [(rank, columns), (rows, rank)]


def rank_grid(shape: Shape) -> range:
    """The ranks of rounded factors that take fewer numbers than W (m, n)."""
    rows, columns = shape
    step = RANKS
    while step > 1 and step * 16 > min(shape):
        step //= 2
    return range(step, (rows * columns - 1) // (rows + columns) + 1, step)
