"""What an allocator is: from spectra and a budget to a rank for every linear."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

from slimrank.factorize.base import Factorizer
from slimrank.run.session import Group, Session
from slimrank.spectrum.decomposition import LinearSpectrum, Spectrum

Ranks = dict[str, int | None]  # None leaves a linear dense


@dataclass(frozen=True)
class Problem:
    """What an allocator may look at.

    keep: the share of the linears' numbers that stays; session: for measuring; joint: the spectra of the groups that
    may be factorised as one.
    """

    keep: float
    spectrum: Spectrum
    form: Factorizer
    session: Session
    joint: Mapping[Group, LinearSpectrum] = field(default_factory=dict)

    @property
    def dense(self) -> int:
        """The numbers in the dense linears."""
        return sum(s.shape[0] * s.shape[1] for s in self.spectrum.linears.values())

    @property
    def budget(self) -> int:
        """The numbers that may stay, over all linears."""
        return allowed(self.keep, self.dense)


def allowed(keep: float, dense: int) -> int:
    """The numbers that may stay of so many."""
    return int(keep * dense + 1e-9)


@dataclass(frozen=True)
class Allocation:
    """The ranks, and what the user should know of how they came about, a sentence each.

    joint: the groups that become one factorisation, whose linears all have its rank.
    """

    ranks: Ranks
    notes: tuple[str, ...] = ()
    joint: tuple[Group, ...] = ()


class Allocator(BaseModel):
    """Base of the allocators; a subclass's fields are its options in a recipe, `name` is its name there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    gradients: ClassVar[bool] = False  # whether it needs OutputMoments
    weight_gradients: ClassVar[bool] = False  # whether it needs what they say of the gradients of the weights

    joins: ClassVar[bool] = False  # whether it chooses which linears become one factorisation

    @property
    def whole_model(self) -> bool:
        """Whether it runs the model again and again, so that all blocks had better be in memory."""
        return False

    def allocate(self, problem: Problem) -> Allocation:
        """Ranks within the problem's budget."""
        raise NotImplementedError
