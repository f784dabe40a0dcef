"""Two thin factors, W' = U V."""

from collections.abc import Sequence
from typing import Any, Literal

from slimrank.factorize.base import Built, Factorizer, Target
from slimrank.forms import LowRank
from slimrank.model.units import Shape


class LowRankFactorizer(Factorizer):
    """Stores r (m + n) parameters."""

    name: Literal["low_rank"] = "low_rank"

    def entries(self, shapes: Sequence[Shape], rank: int) -> list[dict[str, Any]]:
        """A low-rank entry for each linear."""
        return [{"form": LowRank.form, "rank": rank} for _ in shapes]

    def build(self, target: Target, rank: int) -> Built:
        """The decomposition truncated at `rank`, in the dense weight's dtype."""
        left, right = (factor.to(target.weight.dtype) for factor in target.decomposition.cut(rank))
        return Built([LowRank.from_low_rank(left, right, *target.biases)], target.decomposition.loss(rank))
