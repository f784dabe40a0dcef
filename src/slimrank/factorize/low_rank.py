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
        """The decomposition truncated at `rank`, balanced in float64, in the dense weight's dtype."""
        layer = LowRank.from_low_rank(*target.decomposition.cut(rank), *target.biases)
        return Built(target.in_their_dtypes([layer]), target.decomposition.loss(rank))
