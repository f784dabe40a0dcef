"""Pivoted storage (PIFA, arXiv 2501.19090): the same W' in fewer parameters."""

from collections.abc import Sequence
from typing import Any, Literal

from slimrank.factorize.base import Built, Factorizer, Target
from slimrank.forms import Form, Pivoted
from slimrank.forms.joint import Joint, joint_layers
from slimrank.model.units import Shape


class PivotedFactorizer(Factorizer):
    """Stores r (m + n) - r^2 parameters and one bit for each row.

    joint: linears of one module that share an input may also be stacked and pivoted together, sharing the pivots, where
    the allocator finds that this loses less.
    """

    name: Literal["pivoted"] = "pivoted"
    joint: bool = False

    @property
    def stacks(self) -> bool:
        """The option `joint`."""
        return self.joint

    def entries(self, shapes: Sequence[Shape], rank: int) -> list[dict[str, Any]]:
        """A pivoted entry, or one for each linear of a joint unit, all pivots counted at the first linear."""
        if len(shapes) == 1:
            return [{"form": Pivoted.form, "rank": rank}]
        others = [{"form": Joint.form, "rank": rank, "own": 0, "leader": ""} for _ in shapes[1:]]
        return [{"form": Joint.form, "rank": rank, "own": rank}, *others]

    def build(self, target: Target, rank: int) -> Built:
        """The decomposition truncated at `rank`, pivoted in float64, in the dense weights' dtypes."""
        factors, layers = target.decomposition.cut(rank), list[Form]()
        if len(target.dense) == 1:
            layers = [Pivoted.from_low_rank(*factors, *target.biases)]
        else:
            layers = [*joint_layers(*factors, target.rows, target.biases, target.leader)]
        return Built(target.in_their_dtypes(layers), target.decomposition.loss(rank))
