"""The interface of a refiner: a pass over the model after its linears have become factors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from slimrank.calibrate.needs import Holds, Needs, Work
from slimrank.factorize import Factorizer
from slimrank.model.units import Unit
from slimrank.rounding.grid import Grid
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.windows import Windows


@dataclass(frozen=True)
class Cuts:
    """The factorised units with their ranks and the form they are stored in, and the grids of units that are rounded.

    A unit that has a grid and no rank is rounded as it is; one that has both is low rank in two rounded factors. ends:
    the grids of embedding and head, by name.
    """

    form: Factorizer
    ranks: Mapping[Unit, int]
    grids: Mapping[Unit, Grid] = field(default_factory=dict)
    ends: Mapping[str, Grid] = field(default_factory=dict)

    def of_block(self, index: int) -> list[Unit]:
        """The factorised units of one block, in the model's order."""
        return [unit for unit in self.ranks if unit.block == index]

    def changed(self, index: int) -> list[Unit]:
        """The units of one block that are factorised, rounded or both."""
        return [unit for unit in {**self.ranks, **self.grids} if unit.block == index]


class Refiner(BaseModel):
    """Base of the refiners; a subclass's fields are its options in a recipe, `name` is its name there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    trains: ClassVar[bool] = False  # whether it trains by gradient descent
    needs_floats: ClassVar[bool] = False  # whether it changes factors that must be floats, which rounded ones are not
    whole_model: ClassVar[bool] = True  # whether it needs all blocks in memory; else it saves each by Run.finish

    @property
    def needs(self) -> Needs:
        """The calibration statistics it reads."""
        return Needs()

    def work(self, windows: Windows) -> Work:
        """What it takes on these windows, for the estimate before a run."""
        return Work()

    def holds(self, windows: Windows) -> Holds:
        """What it holds in memory beside the model, for the estimate before a run."""
        return Holds()

    @property
    def rebuilds(self) -> bool:
        """Whether it builds every planned linear's factors from the dense weights, whatever was built before."""
        return False

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Change the model's factors in place; returns notes for the user, a sentence each."""
        raise NotImplementedError
