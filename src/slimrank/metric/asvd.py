"""ASVD (arXiv 2312.05821): an error counts by the size of the input channel that it meets."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from slimrank.calibrate.moments import InputMoments
from slimrank.metric.base import Metric


class MeanAbs(Metric):
    """L = I, R = diag((mean over tokens of |x_j|)^alpha)."""

    name: Literal["mean_abs"] = "mean_abs"

    alpha: Annotated[float, Field(ge=0)] = 0.5

    def right(self, inputs: InputMoments) -> Tensor:
        """The squared scales (n,)."""
        return (inputs.absolute / inputs.tokens) ** (2 * self.alpha)
