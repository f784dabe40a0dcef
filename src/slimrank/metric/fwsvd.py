"""FWSVD (arXiv 2207.00112): an error is weighted by the Fisher information of its row."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from slimrank.calibrate.moments import OutputMoments
from slimrank.calibrate.needs import Needs
from slimrank.errors import SlimrankError
from slimrank.metric.base import Metric


class FisherRows(Metric):
    """L = diag(sqrt(row sums of the empirical Fisher of W)), R = I.

    damping: share of the mean row sum added to each, so that rows without Fisher information keep some weight.
    """

    name: Literal["fisher_rows"] = "fisher_rows"

    damping: Annotated[float, Field(gt=0)] = 1e-3

    @property
    def needs(self) -> Needs:
        """The gradients of the weights."""
        return Needs(gradients=True, of_weights=True)

    def left(self, outputs: OutputMoments) -> Tensor:
        """L L^T as its diagonal (m,), the damped row sums; raises a SlimrankError if all are 0."""
        if not outputs.fisher_rows.any():
            raise SlimrankError("The loss has no gradient there: calibrate on more text or leave it dense")
        return damped(outputs.fisher_rows, self.damping)


def damped(rows: Tensor, damping: float) -> Tensor:
    """rows (m,) plus `damping` times their mean."""
    return rows + damping * rows.mean()
