"""SVD-LLM (arXiv 2403.07378): |W X - W' X|_F, the error of the output on the calibration tokens X."""

from typing import Literal

from torch import Tensor

from slimrank.calibrate.moments import InputMoments
from slimrank.metric.base import Metric


class Whitened(Metric):
    """L = I, R R^T = H = sum x x^T."""

    name: Literal["whitened"] = "whitened"

    def right(self, inputs: InputMoments) -> Tensor:
        """R R^T = H (n, n)."""
        return inputs.gram()
