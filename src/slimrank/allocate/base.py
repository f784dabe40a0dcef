"""What an allocator is: from spectra and a budget to a rank for every unit."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from slimrank.calibrate.needs import Needs
from slimrank.factorize.base import Factorizer
from slimrank.model.units import Unit
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run

Ranks = dict[Unit, int | None]
"""None leaves a unit dense; every linear is in one unit."""


@dataclass(frozen=True)
class Problem:
    """What an allocator may look at.

    keep: the share of the linears' numbers that stays; curves: of every linear; stacks: of the units of several linears
    that may become one factorisation; spectra: for the allocators that measure, with the model and the evidence.
    """

    keep: float
    form: Factorizer
    spectra: Spectra
    run: Run = field(default_factory=Run)

    @property
    def curves(self) -> Mapping[Unit, Curve]:
        """What every rank of every linear costs, in the model's order."""
        return self.spectra.curves

    @property
    def dense(self) -> int:
        """The numbers in the dense linears."""
        return sum(unit.parameters for unit in self.curves)

    @property
    def budget(self) -> int:
        """The numbers that may stay, over all linears."""
        return allowed(self.keep, self.dense)

    def cost(self, unit: Unit, rank: int | None) -> int:
        """The numbers that a unit stores."""
        return unit.parameters if rank is None else self.form.cost(unit.shapes, rank)

    def rank_within(self, unit: Unit, share: float) -> int:
        """The largest rank within a share of the unit's own numbers, 0 if none is."""
        return self.form.rank_for(unit.shapes, share * unit.parameters + 1e-6)

    def by_block(self) -> dict[int, list[Unit]]:
        """The linears of every block."""
        blocks: dict[int, list[Unit]] = {}
        for unit in self.curves:
            blocks.setdefault(unit.block, []).append(unit)
        return blocks


def allowed(keep: float, dense: int) -> int:
    """The numbers that may stay of so many."""
    return int(keep * dense + 1e-9)


@dataclass(frozen=True)
class Allocation:
    """The ranks, and what the user should know of how they came about, a sentence each."""

    ranks: Ranks
    notes: tuple[str, ...] = ()


class Allocator(BaseModel):
    """Base of the allocators; a subclass's fields are its options in a recipe, `name` is its name there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    @property
    def needs(self) -> Needs:
        """What it needs from calibration."""
        return Needs()

    @property
    def stacks(self) -> bool:
        """Whether it chooses which linears become one factorisation."""
        return False

    @property
    def measures(self) -> bool:
        """Whether it runs the model again and again, so that all blocks had better be in memory."""
        return False

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks within the problem's budget."""
        raise NotImplementedError
