"""ASVD (arXiv 2312.05821): an error is weighted by the mean size of its input channel."""

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
        """R R^T as its diagonal (n,): (mean |x_j|)^(2 alpha)."""
        return (inputs.absolute / inputs.tokens) ** (2 * self.alpha)
