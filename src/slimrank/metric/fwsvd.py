"""FWSVD (arXiv 2207.00112): an error counts by the Fisher information of the weight's row."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.metric.base import Metric, Site
from slimrank.numerics.grams import Grams


class FisherRows(Metric):
    """L = diag(sqrt(row sums of the empirical Fisher of W)), R = I.

    damping: share of the mean row sum that is added to each, so that a row without Fisher information is not lost.
    """

    name: Literal["fisher_rows"] = "fisher_rows"
    gradients: ClassVar[bool] = True
    weight_gradients: ClassVar[bool] = True

    damping: Annotated[float, Field(gt=0)] = 1e-3

    def grams(self, site: Site) -> Grams:
        """The damped row sums on the left."""
        if site.outputs is None or not site.outputs.fisher_rows.any():
            raise SlimrankError(f"The loss has no gradient at {site.name}: calibrate on more text or leave it dense.")
        return Grams(left=damped(site.outputs.fisher_rows, self.damping))


def damped(rows: Tensor, damping: float) -> Tensor:
    """rows (m,) and `damping` times their mean."""
    return rows + damping * rows.mean()
