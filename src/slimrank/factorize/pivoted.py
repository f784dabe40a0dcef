"""Pivoted storage (PIFA, arXiv 2501.19090): the same W' in fewer numbers."""

from typing import Literal

from slimrank.factorize.base import Factorizer, Shape, Target
from slimrank.forms.bits import packed_bytes
from slimrank.forms.pivoted import Pivoted


class PivotedFactorizer(Factorizer):
    """r (m + n) - r^2 numbers and a byte for every eight rows."""

    name: Literal["pivoted"] = "pivoted"

    def cost(self, shape: Shape, rank: int) -> int:
        """r (m + n) - r^2 + ceil(m / 8); more than dense at full rank."""
        rows, columns = shape
        return rank * (rows + columns - rank) + packed_bytes(rows)

    def build(self, target: Target, rank: int) -> Pivoted:
        """The cut of the decomposition at `rank`, its pivots chosen in float64, in the dense weight's dtype."""
        layer = Pivoted.from_low_rank(*target.decomposition.cut(rank), target.bias)
        return layer.to(target.weight.dtype)
