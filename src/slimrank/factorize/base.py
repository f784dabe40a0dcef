"""The interface of a factorizer: the cost of a rank in its form, and the layers that replace a unit."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from slimrank.forms import FORMS, Form, LowRank
from slimrank.forms.linear import bias_of, shape_of, weight_of
from slimrank.model.units import Shape
from slimrank.numerics.grams import Grams
from slimrank.spectrum.decomposition import Decomposition


@dataclass(frozen=True)
class Target:
    """A unit to be replaced.

    dense: its modules; weight: the stacked weight to approximate (m, n); grams: the metric; decomposition: of `weight`
    under `grams`; leader: the first module's name within its parent module.
    """

    dense: Sequence[nn.Module]
    weight: Tensor
    grams: Grams
    decomposition: Decomposition
    leader: str

    @property
    def biases(self) -> list[Tensor | None]:
        """The bias (m_i,) of each module, None if it has none."""
        return [bias_of(module) for module in self.dense]

    @property
    def rows(self) -> list[int]:
        """The output width m_i of each module."""
        return [shape_of(module)[0] for module in self.dense]

    def in_their_dtypes(self, layers: Sequence[Form]) -> list[Form]:
        """The layers cast to the dtypes of the dense weights."""
        return [layer.to(weight_of(dense).dtype) for layer, dense in zip(layers, self.dense, strict=True)]


@dataclass(frozen=True)
class Built:
    """The layers that replace a unit's linears, in order, and their squared error in the metric."""

    layers: Sequence[Form]
    loss: float


class Factorizer(BaseModel):
    """Base of the factorizers; a subclass's fields are its options in a recipe, `name` is the form's name.

    multiple: ranks are multiples of this number. shared: all experts of a layer may share one factor, the input factor
    of their first matrices and the output factor of their second, where the allocator finds that this loses less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    searches: ClassVar[bool] = False
    """Whether `build` optimises beyond the truncation, so that its error differs from the curve's."""

    name: str
    multiple: int = Field(default=1, ge=1)
    shared: bool = False

    @property
    def stacks(self) -> bool:
        """Whether it can factorise several linears that share their input together."""
        return False

    def entries(self, shapes: Sequence[Shape], rank: int) -> list[dict[str, Any]]:
        """The planned entry (see Form.entry) of each layer of a unit with these shapes."""
        raise NotImplementedError

    def built(self, target: Target, rank: int) -> Built:
        """As `build`; rank 0, which an expert's matrix may have, gives layers of no parameters, whose output is 0."""
        if rank:
            return self.build(target, rank)
        ends = zip(target.weight.split(target.rows), target.biases, strict=True)
        layers = [LowRank.from_low_rank(part[:, :0].contiguous(), part[:0], bias) for part, bias in ends]
        return Built(layers, target.decomposition.loss(0))

    def build(self, target: Target, rank: int) -> Built:
        """Build the layers that replace the target's linears, with at most `costs` parameters each."""
        raise NotImplementedError

    def costs(self, shapes: Sequence[Shape], rank: int) -> list[int]:
        """The parameters that each linear of a unit stores at a rank, indices included (see Form.count_parameters)."""
        if rank == 0:
            return [0 for _ in shapes]
        entries = zip(shapes, self.entries(shapes, rank), strict=True)
        return [FORMS[entry["form"]].count_parameters(*shape, entry) for shape, entry in entries]

    def cost(self, shapes: Sequence[Shape], rank: int) -> int:
        """The parameters that a unit stores at a rank."""
        return sum(self.costs(shapes, rank))

    def rank_for(self, shapes: Sequence[Shape], budget: float) -> int:
        """The largest rank, a multiple of `multiple` or the full one, whose cost is within the budget; 0 if none is."""
        low, high = 0, full_rank(shapes)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.cost(shapes, middle) <= budget else (low, middle - 1)
        return low if low == full_rank(shapes) else low // self.multiple * self.multiple


def full_rank(shapes: Sequence[Shape]) -> int:
    """The largest rank of the stacked weights."""
    return min(sum(rows for rows, _ in shapes), shapes[0][1])
