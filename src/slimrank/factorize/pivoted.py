"""Pivoted storage (PIFA, arXiv 2501.19090): the same W' in fewer numbers."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from slimrank.factorize.base import Factorizer, Shape, Target
from slimrank.forms.bits import packed_bytes
from slimrank.forms.joint import Joint, joint_layers
from slimrank.forms.pivoted import Pivoted
from slimrank.model.linear import bias_of, shape_of, weight_of
from slimrank.spectrum.decomposition import Decomposition


class PivotedFactorizer(Factorizer):
    """r (m + n) - r^2 numbers and a byte for every eight rows.

    joint: linears of one module that share an input may also be stacked and pivoted as one, where the allocator finds
    that this loses less: they then share the pivots.
    """

    name: Literal["pivoted"] = "pivoted"
    joint: bool = False

    @property
    def joins(self) -> bool:
        """As the recipe says."""
        return self.joint

    def cost(self, shape: Shape, rank: int) -> int:
        """r (m + n) - r^2 + ceil(m / 8); more than dense at full rank."""
        rows, columns = shape
        return rank * (rows + columns - rank) + packed_bytes(rows)

    def joint_costs(self, shapes: Sequence[Shape], rank: int) -> list[int]:
        """r (sum of m_i + n) - r^2 and the bytes, all but r m_i and a linear's own bytes counted at the first."""
        costs = [rank * rows + packed_bytes(rows) for rows, _ in shapes]
        return [costs[0] + rank * (shapes[0][1] - rank), *costs[1:]]

    def build(self, target: Target, rank: int) -> Pivoted:
        """The cut of the decomposition at `rank`, its pivots chosen in float64, in the dense weight's dtype."""
        layer = Pivoted.from_low_rank(*target.decomposition.cut(rank), target.bias)
        return layer.to(target.weight.dtype)

    def build_joint(
        self, dense: Sequence[nn.Module], decomposition: Decomposition, rank: int, leader: str
    ) -> list[Joint]:
        """The cut of the stack's decomposition, as `build`."""
        sizes, biases = [shape_of(linear)[0] for linear in dense], [bias_of(linear) for linear in dense]
        layers = joint_layers(*decomposition.cut(rank), sizes, biases, leader)
        return [layer.to(weight_of(linear).dtype) for layer, linear in zip(layers, dense, strict=True)]
