"""Pivoted storage (PIFA, arXiv 2501.19090): the same W' in fewer numbers."""

from collections.abc import Sequence
from typing import Any, Literal

from slimrank.factorize.base import Built, Factorizer, Target
from slimrank.forms import Form, Joint, Pivoted, joint_layers
from slimrank.model.units import Shape


class PivotedFactorizer(Factorizer):
    """r (m + n) - r^2 numbers and a byte for every eight rows.

    joint: linears of one module that share an input may also be stacked and pivoted as one, where the allocator finds
    that this loses less: they then share the pivots.
    """

    name: Literal["pivoted"] = "pivoted"
    joint: bool = False

    @property
    def stacks(self) -> bool:
        """As `joint` says."""
        return self.joint

    def entries(self, shapes: Sequence[Shape], rank: int) -> list[dict[str, Any]]:
        """One pivoted layer, or one each; which of them has how many pivots of its own is not known before."""
        if len(shapes) == 1:
            return [{"form": Pivoted.form, "rank": rank}]
        others = [{"form": Joint.form, "rank": rank, "own": 0, "leader": ""} for _ in shapes[1:]]
        return [{"form": Joint.form, "rank": rank, "own": rank}, *others]

    def build(self, target: Target, rank: int) -> Built:
        """The cut of the decomposition at `rank`, its pivots chosen in float64, in the dense weights' dtypes."""
        factors, layers = target.decomposition.cut(rank), list[Form]()
        if len(target.dense) == 1:
            layers = [Pivoted.from_low_rank(*factors, *target.biases)]
        else:
            layers = [*joint_layers(*factors, target.rows, target.biases, target.leader)]
        return Built(target.in_their_dtypes(layers), target.decomposition.loss(rank))
