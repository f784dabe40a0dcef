"""The interface of an allocator: spectra and a budget in, a rank for every unit out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from slimrank.allocate.candidates import Candidates
from slimrank.allocate.stored import Cost
from slimrank.calibrate.needs import Holds, Needs, Work
from slimrank.factorize.base import Factorizer
from slimrank.factorize.shared import form_for
from slimrank.model.units import Unit
from slimrank.rounding.grid import Grid
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.windows import Windows

Ranks = dict[Unit, int | None]
"""Rank by unit, None for dense; every linear is in exactly one unit."""


@dataclass(frozen=True)
class Problem:
    """The input of an allocator.

    keep: the share of the linears' parameters that stays; form: gives the cost of a rank; spectra: the curves, and for
    allocators that measure, the model and the evidence; run: progress and finished pieces.
    """

    keep: float
    form: Factorizer
    spectra: Spectra
    run: Run = field(default_factory=Run)

    @property
    def curves(self) -> Mapping[Unit, Curve]:
        """The curve of every single linear (loss at every rank), in the model's order."""
        return self.spectra.curves

    @property
    def dense(self) -> int:
        """Parameters of the dense linears."""
        return sum(unit.parameters for unit in self.curves)

    @property
    def budget(self) -> int:
        """Parameters that the compressed linears may have in all."""
        return allowed(self.keep, self.dense)

    def cost(self, unit: Unit, rank: int | None) -> int:
        """Parameters that a unit stores at a rank, None for dense."""
        return unit.parameters if rank is None else form_for(self.form, unit).cost(unit.shapes, rank)

    def rank_within(self, unit: Unit, share: float) -> int:
        """The largest rank that costs at most `share` of the unit's dense parameters, 0 if none does."""
        return self.form.rank_for(unit.shapes, share * unit.parameters + 1e-6)

    def by_block(self) -> dict[int, list[Unit]]:
        """The linears by block index."""
        blocks: dict[int, list[Unit]] = {}
        for unit in self.curves:
            blocks.setdefault(unit.block, []).append(unit)
        return blocks


def allowed(keep: float, dense: int) -> int:
    """floor(keep * dense) parameters, tolerant of rounding."""
    return int(keep * dense + 1e-9)


@dataclass(frozen=True)
class Allocation:
    """The ranks, and notes for the user, a sentence each; grids: of the units that are rounded."""

    ranks: Ranks
    notes: tuple[str, ...] = ()
    grids: Mapping[Unit, Grid] = field(default_factory=dict)


class Allocator(BaseModel):
    """Base of the allocators; a subclass's fields are its options in a recipe, `name` is its name there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    cuts: ClassVar[bool] = True
    """Whether it chooses ranks within `keep`; otherwise all linears stay dense and `keep` is 1."""

    @property
    def needs(self) -> Needs:
        """The calibration statistics it reads beside the curves."""
        return Needs()

    @property
    def stacks(self) -> bool:
        """Whether it can choose linears that are factorised together as one unit."""
        return False

    spends: ClassVar[bool] = False
    """Whether it can spend bytes or seconds instead of parameters."""

    @property
    def pricing(self) -> tuple[Grid, ...]:
        """The grids that it chooses from under a budget of bytes or seconds."""
        return ()

    @property
    def end_widths(self) -> tuple[int, ...]:
        """The widths that embedding and head may have under a budget of bytes; 16 leaves them floats."""
        return (16,)

    @property
    def measures(self) -> bool:
        """Whether it runs the model repeatedly, so that all blocks are held in memory."""
        return False

    def work(self, windows: Windows, linears: int) -> Work:
        """What it takes on these windows with so many linears, for the estimate before a run."""
        return Work()

    def holds(self, windows: Windows) -> Holds:
        """What it holds in memory beside the model, for the estimate before a run."""
        return Holds()

    def allocate(self, problem: Problem) -> Allocation:
        """Choose ranks within the problem's budget."""
        raise NotImplementedError

    def candidates(self, problem: Problem, cost: Cost) -> Candidates:
        """What units may be stored as under any budget of bytes or seconds; of allocators with `spends`."""
        raise NotImplementedError
