"""The interface of a metric: calibration moments of a linear in, the Grams that weigh its error out."""

from typing import Self

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slimrank.calibrate.moments import InputMoments, OutputMoments
from slimrank.calibrate.needs import Needs


class Metric(BaseModel):
    """An error E (m, n) of a weight costs |L^T E R|_F^2; a metric returns L L^T and R R^T.

    A subclass's fields are its options in a recipe, `name` is its name there. A Gram is a matrix, a vector for a
    diagonal one, or None for the identity.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str

    @property
    def needs(self) -> Needs:
        """The calibration statistics it reads; `left` is called only if they include gradients."""
        return Needs()

    def left(self, outputs: OutputMoments) -> Tensor | None:
        """L L^T of a linear, (m, m) or (m,), from the gradients at its output."""
        return None

    def right(self, inputs: InputMoments) -> Tensor | None:
        """R R^T of a linear, (n, n) or (n,), from its inputs on the calibration windows."""
        return None

    def held_out_right(self, inputs: InputMoments, held_out: InputMoments) -> Tensor | None:
        """R R^T that weighs an error on the held-out windows; inputs: of the calibration windows."""
        return self.right(held_out)

    def choose(self, weight: Tensor, inputs: InputMoments, held_out: InputMoments | None, keep: float) -> float | None:
        """An option chosen by measurement for one weight (m, n), passed to `chosen`; None by default.

        keep: the overall share of parameters that stays.
        """
        return None

    def chosen(self, choice: float | None) -> Self:
        """The metric of a linear for which `choose` returned `choice`."""
        return self

    @property
    def depends_on_keep(self) -> bool:
        """Whether `choose` depends on `keep`."""
        return False
