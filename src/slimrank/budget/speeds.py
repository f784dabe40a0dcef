"""How fast plans of bytes will decode, where the layers of the model were timed before on this machine."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from slimrank.allocate.seconds import Seconds
from slimrank.allocate.stored import Stored
from slimrank.budget.bench import bench_of
from slimrank.budget.ends import head_bits
from slimrank.budget.kept import times_file
from slimrank.budget.times import Timed, kept_times
from slimrank.model.compressible import Compressible
from slimrank.model.units import Unit
from slimrank.recipe import Recipe
from slimrank.rounding.grid import Grid


@dataclass(frozen=True)
class Decoding:
    """timed: the model's layers, for a token at a time; grids: by bits the grid whose layers were timed."""

    model: Compressible
    timed: Timed
    cost: Seconds
    grids: Mapping[int, Grid]

    @classmethod
    def kept(cls, model: Compressible, recipe: Recipe, dtype: torch.dtype) -> "Decoding | None":
        """By the times that the user's cache folder has of this model, machine and dtype; None where it has none."""
        mixed = any(unit.mixture for unit in model.units.values())
        if mixed or model.decoder.device.type != "cpu" or not times_file().is_file():
            return None
        grids = finest(recipe.allocate.pricing)
        timed = kept_times(bench_of(model, recipe.form, grids, 1, dtype, recipe.allocate.end_widths))
        if timed is None:
            return None
        return cls(model, timed, Seconds(recipe.form, timed.times), {grid.bits: grid for grid in grids})

    def speedup(self, stored: Mapping[Unit, Stored], ends: Mapping[str, int]) -> float:
        """How many times as fast as the dense model units that are stored so are, with ends in these bits.

        Groups of any size are said to take as long as the smallest, which take a few percent longer.
        """
        timed, linears = self.timed, {name for unit in stored for name in unit.names}
        alike = {unit: Stored(one.rank, one.grid and self.grids[one.grid.bits]) for unit, one in stored.items()}
        stay = {unit: Stored() for name, unit in self.model.units.items() if name not in linears}
        units = sum(self.cost.of(unit, one) for unit, one in (alike | stay).items())
        return timed.dense / (timed.rest + timed.heads.get(head_bits(self.model, ends), 0.0) + units)


def finest(grids: Sequence[Grid]) -> tuple[Grid, ...]:
    """Of every width the grid with the smallest groups, which loses least and was as quick within a few percent."""
    widths = dict.fromkeys(one.bits for one in grids)
    return tuple(min((one for one in grids if one.bits == bits), key=size_of_group) for bits in widths)


def size_of_group(grid: Grid) -> float:
    """The inputs that share a scale, infinitely many for a whole row."""
    return grid.group or math.inf
