"""Two thin factors, W' = U V."""

from typing import Literal

from slimrank.factorize.base import Factorizer, Shape, Target
from slimrank.forms.low_rank import LowRank


class LowRankFactorizer(Factorizer):
    """r (m + n) numbers."""

    name: Literal["low_rank"] = "low_rank"

    def cost(self, shape: Shape, rank: int) -> int:
        """r (m + n)."""
        return rank * sum(shape)

    def build(self, target: Target, rank: int) -> LowRank:
        """The cut of the decomposition at `rank`, in the dense weight's dtype."""
        left, right = (factor.to(target.weight.dtype) for factor in target.decomposition.cut(rank))
        return LowRank.from_low_rank(left, right, target.bias)
