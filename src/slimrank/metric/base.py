"""What a metric is: from what calibration saw at a linear to the Grams that weigh its error."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from slimrank.calibrate.gradients import Labels
from slimrank.calibrate.moments import InputMoments, OutputMoments
from slimrank.numerics.grams import Blocks, Grams, Left


@dataclass(frozen=True)
class Site:
    """One linear as a metric sees it.

    weight (m, n); inputs: the moments of its input on the calibration windows, held_out: on the held-out ones;
    outputs: only where the metric asked for gradients; keep: the share of parameters that is to stay overall;
    role: the name inside the block; choices: by linear, what the metric settled by measuring, kept for the next time.
    """

    name: str
    weight: Tensor
    inputs: InputMoments
    held_out: InputMoments | None = None
    outputs: OutputMoments | None = None
    keep: float = 1.0
    role: str = ""
    choices: dict[str, float] = field(default_factory=dict)


class Metric(BaseModel):
    """Base of the metrics; a subclass's fields are its options in a recipe, `name` is its name there."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    gradients: ClassVar[bool] = False  # whether it needs OutputMoments
    weight_gradients: ClassVar[bool] = False  # whether it needs what they say of the gradients of the weights

    @property
    def gradient_labels(self) -> Labels:
        """Which next tokens the gradients are taken for."""
        return "text"

    @property
    def gradient_tokens(self) -> int | None:
        """On how many calibration tokens the gradients are taken, all by default."""
        return None

    @property
    def of_keep(self) -> bool:
        """Whether its Grams depend on the share of parameters that is to stay."""
        return False

    route: Literal["projector", "cholesky", "eigen"] = "projector"

    def grams(self, site: Site) -> Grams:
        """The Grams of the metric at one linear."""
        raise NotImplementedError

    def left_gram(self, site: Site) -> Tensor | None:
        """The left one of `grams`, which gradients alone give; the inputs' Gram may be gone when it is asked for."""
        left = self.grams(site).left if self.gradients else None
        assert not isinstance(left, Blocks), "a linear's own is whole"
        return left

    def right_gram(self, site: Site) -> Tensor | None:
        """The right one of `grams`."""
        return self.grams(site).right

    def stacked_gram(self, sites: Sequence[Site]) -> Left:
        """The left one of linears stacked on each other, of one alone its own."""
        if len(sites) == 1 or not self.gradients:
            return self.left_gram(sites[0])

        def make(index: int) -> Tensor:
            left = self.left_gram(sites[index])
            assert left is not None, "a metric with gradients has a left Gram"
            return left

        return Blocks(tuple(len(site.weight) for site in sites), make)

    def held_out_inputs(self, site: Site) -> Grams | None:
        """As held_out_grams, of which the right one alone is of interest."""
        return self.held_out_grams(site)

    def held_out_grams(self, site: Site) -> Grams | None:
        """The Grams by which an error is measured on the held-out windows, None where no held-out token came by."""
        return None if site.held_out is None else self.grams(replace(site, inputs=site.held_out))
