"""ASVD (arXiv 2312.05821): an error counts by the size of the input channel that it meets."""

from typing import Annotated, Literal

from pydantic import Field

from slimrank.metric.base import Metric, Site
from slimrank.numerics.grams import Grams


class MeanAbs(Metric):
    """L = I, R = diag((mean over tokens of |x_j|)^alpha)."""

    name: Literal["mean_abs"] = "mean_abs"

    alpha: Annotated[float, Field(ge=0)] = 0.5

    def grams(self, site: Site) -> Grams:
        """The squared scales on the right."""
        return Grams(right=(site.inputs.absolute / site.inputs.tokens) ** (2 * self.alpha))
