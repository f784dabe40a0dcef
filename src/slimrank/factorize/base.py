"""What a factorizer is: what a rank costs in its form, and the layers that a unit becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from slimrank.forms import FORMS, Form
from slimrank.forms.linear import bias_of, shape_of, weight_of
from slimrank.model.units import Shape
from slimrank.numerics.grams import Grams
from slimrank.spectrum.decomposition import Decomposition


@dataclass(frozen=True)
class Target:
    """A unit to be replaced.

    dense: its modules; weight: what to approximate, stacked (m, n); grams: its metric; decomposition: of that weight in
    that metric; leader: the first module's own name in the module that holds them all.
    """

    dense: Sequence[nn.Module]
    weight: Tensor
    grams: Grams
    decomposition: Decomposition
    leader: str

    @property
    def biases(self) -> list[Tensor | None]:
        """The dense bias (m_i,) of each."""
        return [bias_of(one) for one in self.dense]

    @property
    def rows(self) -> list[int]:
        """m_i of each."""
        return [shape_of(one)[0] for one in self.dense]

    def in_their_dtypes(self, layers: Sequence[Form]) -> list[Form]:
        """The layers in the dense weights' dtypes."""
        return [layer.to(weight_of(dense).dtype) for layer, dense in zip(layers, self.dense, strict=True)]


@dataclass(frozen=True)
class Built:
    """The layers in the places of a unit's linears, and their squared error in the metric."""

    layers: Sequence[Form]
    loss: float


class Factorizer(BaseModel):
    """Base of the forms' factorizers; a subclass's fields are its options in a recipe, `name` is the form's.

    multiple: ranks are multiples of it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    searches: ClassVar[bool] = False
    """Whether `build` looks for something in the weight, so that its error is not that of the plain cut."""

    name: str
    multiple: int = Field(default=1, ge=1)

    @property
    def stacks(self) -> bool:
        """Whether it may make one factorisation of several linears that share their input."""
        return False

    def entries(self, shapes: Sequence[Shape], rank: int) -> list[dict[str, Any]]:
        """The layers' entries (see Form.entry) as they are planned for the linears of a unit of these shapes."""
        raise NotImplementedError

    def build(self, target: Target, rank: int) -> Built:
        """The layers that replace the target's linears, within `costs`."""
        raise NotImplementedError

    def costs(self, shapes: Sequence[Shape], rank: int) -> list[int]:
        """The numbers that each linear of a unit stores at a rank, indices included, as its form counts them."""
        entries = zip(shapes, self.entries(shapes, rank), strict=True)
        return [FORMS[entry["form"]].count_parameters(*shape, entry) for shape, entry in entries]

    def cost(self, shapes: Sequence[Shape], rank: int) -> int:
        """The numbers that a unit of these shapes stores at a rank."""
        return sum(self.costs(shapes, rank))

    def rank_for(self, shapes: Sequence[Shape], budget: float) -> int:
        """The largest rank whose cost is within the budget (numbers), 0 if none is; a multiple of `multiple`."""
        low, high = 0, full_rank(shapes)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cost(shapes, middle) <= budget else (low, middle - 1)
        return low if low == full_rank(shapes) else low // self.multiple * self.multiple


def full_rank(shapes: Sequence[Shape]) -> int:
    """Of the weights stacked."""
    return min(sum(rows for rows, _ in shapes), shapes[0][1])
