"""What a factorizer is: how many numbers a rank costs in its form, and the layer that a linear becomes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from slimrank.forms.base import Form
from slimrank.model.linear import bias_of
from slimrank.numerics.grams import Grams
from slimrank.spectrum.decomposition import Decomposition

Shape = tuple[int, int]


@dataclass(frozen=True)
class Target:
    """One linear to be replaced: the dense module, the weight (m, n) to approximate, its metric and decomposition.

    found: what the form searched for and found at each rank, kept for the next time.
    """

    dense: nn.Module
    weight: Tensor
    grams: Grams
    decomposition: Decomposition
    found: dict[int, Any] = field(default_factory=dict)

    @property
    def bias(self) -> Tensor | None:
        """The dense bias (m,)."""
        return bias_of(self.dense)


class Factorizer(BaseModel):
    """Base of the forms' factorizers; a subclass's fields are its options in a recipe, `name` is the form's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    searches: ClassVar[bool] = False  # whether loss() must look at the weight, and not at its spectrum alone

    name: str
    multiple: int = Field(default=1, ge=1)

    @property
    def joins(self) -> bool:
        """Whether linears that share an input may become one factorisation of the stacked matrix."""
        return False

    def cost(self, shape: Shape, rank: int) -> int:
        """Stored numbers of one matrix (m, n) at a rank, indices included."""
        raise NotImplementedError

    def joint_costs(self, shapes: Sequence[Shape], rank: int) -> list[int]:
        """Stored numbers of matrices stacked to one of a rank; the first one's hold what they share."""
        raise NotImplementedError

    def rank_for(self, shape: Shape, budget: float) -> int:
        """The largest rank whose cost is within the budget (numbers), 0 if none is; a multiple of `multiple`."""
        low, high = 0, min(shape)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cost(shape, middle) <= budget else (low, middle - 1)
        return low if low == min(shape) else low // self.multiple * self.multiple

    def loss(self, target: Target, rank: int) -> float:
        """The squared error in the metric of what `build` makes: that of the decomposition's cut."""
        return target.decomposition.loss(rank)

    def build(self, target: Target, rank: int) -> Form:
        """The layer that replaces the dense linear, within cost(shape, rank)."""
        raise NotImplementedError

    def build_joint(
        self, dense: Sequence[nn.Module], decomposition: Decomposition, rank: int, leader: str
    ) -> Sequence[Form]:
        """The layers that replace linears stacked, by the stack's decomposition; leader: the first one's own name."""
        raise NotImplementedError
