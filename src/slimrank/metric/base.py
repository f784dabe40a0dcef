"""What a metric is: from what calibration saw at a linear to the Grams that weigh its error."""

from typing import Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slimrank.calibrate.moments import InputMoments, OutputMoments
from slimrank.calibrate.needs import Needs


class Metric(BaseModel):
    """The error E (m, n) of a weight counts as |L^T E R|_F^2; a metric gives L L^T and R R^T.

    A subclass's fields are its options in a recipe, `name` is its name there. A Gram is a matrix, a vector for a
    diagonal one, or None for the identity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    @property
    def needs(self) -> Needs:
        """What it needs from calibration; `left` is asked for only where that includes gradients."""
        return Needs()

    def left(self, outputs: OutputMoments) -> Tensor | None:
        """L L^T of a linear, (m, m) or (m,), from the gradients at its output."""
        return None

    def right(self, inputs: InputMoments) -> Tensor | None:
        """R R^T of a linear, (n, n) or (n,), from its inputs on the calibration windows."""
        return None

    def held_out_right(self, inputs: InputMoments, held_out: InputMoments) -> Tensor | None:
        """R R^T by which an error is measured on held-out windows; inputs: the calibration windows'."""
        return self.right(held_out)

    def choose(self, weight: Tensor, inputs: InputMoments, held_out: InputMoments | None, keep: float) -> float | None:
        """What the metric settles by measuring for one weight (m, n), by which `chosen` is called; mostly nothing.

        keep: the share of parameters that is to stay overall.
        """
        return None

    def chosen(self, choice: float | None) -> Self:
        """The metric at a linear for which `choose` gave this."""
        return self

    @property
    def depends_on_keep(self) -> bool:
        """Whether `choose` looks at the share of parameters that is to stay."""
        return False
