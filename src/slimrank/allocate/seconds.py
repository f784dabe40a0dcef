"""What units cost in seconds, from layers that were measured at a few ranks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import floor, lcm

import numpy as np

from slimrank.allocate.hull import Floats
from slimrank.allocate.stored import Stored, rank_step
from slimrank.errors import UsageError
from slimrank.factorize import Factorizer
from slimrank.factorize.rounded import entry_of
from slimrank.forms import Dense
from slimrank.model.units import Shape, Unit
from slimrank.rounding.grid import Grid

Lines = Mapping[str, Sequence[tuple[int, float]]]
"""Ranks and seconds by what was measured (see `named`); a dense layer has its full rank."""


def named(shapes: Sequence[Shape], form: str, grid: Grid | None = None) -> str:
    """What a line of measurements is of: shapes, form, and bits and group of a grid, such as "64x32 low_rank 4b32"."""
    stored = "" if grid is None else f" {grid.bits}b{grid.group or ''}"
    return "+".join(f"{rows}x{columns}" for rows, columns in shapes) + f" {form}{stored}"


@dataclass(frozen=True)
class Times:
    """Seconds of a layer at any rank: between measured ranks on a straight line, and never falling with the rank.

    A rank that was quicker than a smaller one is said to take as long as that, so that no noise is chosen. Below the
    least measured rank a layer takes as long as there, above the largest in proportion more.
    """

    lines: Lines

    @cached_property
    def _rising(self) -> dict[str, tuple[Floats, Floats]]:
        found = {}
        for name, points in self.lines.items():
            ranks, seconds = np.array(sorted(points), float).T
            found[name] = ranks, np.maximum.accumulate(seconds)
        return found

    def at(self, name: str, rank: int) -> float:
        """Seconds of the layer with that name (see `named`) at a rank.

        Raises:
            UsageError: if none such was measured.
        """
        if name not in self._rising:
            raise UsageError(
                f"The plan's time.seconds has no {name}: give that linear a form and bits that were timed, or make the "
                "plan again."
            )
        ranks, seconds = self._rising[name]
        return float(np.interp(rank, ranks, seconds) * max(1.0, rank / ranks[-1]))

    def dense(self, shapes: Sequence[Shape]) -> float:
        """Seconds of dense layers of these shapes, one after the other."""
        return sum(self.at(named([shape], Dense.form), min(shape)) for shape in shapes)

    def least(self, shapes: Sequence[Shape]) -> float:
        """The fewest seconds that one layer, or several as one unit, were measured to take."""
        own = "+".join(f"{rows}x{columns}" for rows, columns in shapes)
        return min(float(seconds[0]) for name, (_, seconds) in self._rising.items() if name.split()[0] == own)


@dataclass(frozen=True)
class Seconds:
    """form: of float factors; times: of its layers, dense ones and rounded ones."""

    form: Factorizer
    times: Times

    def of(self, unit: Unit, stored: Stored) -> float:
        """What one call of the unit's layers takes."""
        rank, grid = stored.rank, stored.grid
        if rank is None and grid is None:
            return self.times.dense(unit.shapes)
        if grid is not None:
            name = named(unit.shapes, entry_of(grid, rank)["form"], grid)
            return self.times.at(name, min(unit.shape) if rank is None else rank)
        return self.times.at(named(unit.shapes, float_form(self.form, unit.shapes)), rank or 0)

    def knows(self, grid: Grid) -> bool:
        """Whether layers on this grid were measured."""
        own = named([], Dense.form, grid)
        return any(name.endswith(own) for name in self.times.lines)

    def multiple(self, unit: Unit) -> int:
        """A multiple of the form's that kernels take well, so that what lies between measured ranks is as quick."""
        return float_step(self.form, unit.shapes)


def too_fast(dense: float, least: float, speedup: float) -> UsageError:
    """The error where a model of `least` seconds at least is to be so many times as fast as the one of `dense`."""
    fastest = floor(1000 * dense / least) / 1000
    return UsageError(
        f"--speedup {speedup:.5g} is more than any plan reaches on this device for so many --tokens: the fastest "
        f"possible is {fastest:g}, with every linear at its fastest; ask for that or less."
    )


def float_form(form: Factorizer, shapes: Sequence[Shape]) -> str:
    """The name of the layers' form in floats."""
    name: str = form.entries(shapes, 1)[0]["form"]
    return name


def float_step(form: Factorizer, shapes: Sequence[Shape]) -> int:
    """The step between ranks in floats."""
    return lcm(form.multiple, rank_step((sum(rows for rows, _ in shapes), shapes[0][1])))
