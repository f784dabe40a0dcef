"""The two-sided metric: an error counts by the loss it causes, so that squared singular values are nats."""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.calibrate.gradients import Labels
from slimrank.calibrate.moments import OutputMoments
from slimrank.errors import SlimrankError
from slimrank.metric.base import Metric, Site
from slimrank.numerics.grams import Grams, shrunk_


class TwoSided(Metric):
    """L L^T = G / 2, R R^T = H / T: |L^T E R|_F^2 is the expected rise of the loss, in nats per token.

    It is the second-order term tr(E^T G E H) / 2 of the loss for an error E of one weight, with G = E[g g^T] and
    H = E[x x^T] over tokens and the loss's Hessian taken as the Kronecker product of the two (K-FAC's assumption).
    labels: whether g is the gradient for the text's next token or for one sampled from the model. shrink: G's share
    that is replaced by its mean diagonal, `auto` for Ledoit and Wolf's. scalar: roles whose G is its mean diagonal
    alone. tokens: on how many calibration tokens g is taken, in whole windows; None for all.
    """

    name: Literal["two_sided"] = "two_sided"
    gradients: ClassVar[bool] = True

    labels: Labels = "text"
    shrink: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    scalar: tuple[str, ...] = ()
    tokens: Annotated[int, Field(ge=1)] | None = 16_384

    @property
    def gradient_tokens(self) -> int | None:
        """As the recipe says."""
        return self.tokens

    @property
    def gradient_labels(self) -> Labels:
        """As the recipe says."""
        return self.labels

    def grams(self, site: Site) -> Grams:
        """Both Grams per token, the factor 1/2 in the left one."""
        return Grams(self.left_gram(site), self.right_gram(site))

    def right_gram(self, site: Site) -> Tensor:
        """H / T, without the left one."""
        return site.inputs.mean()

    def left_gram(self, site: Site) -> Tensor:
        """G / 2, shrunk."""
        if site.outputs is None:
            raise SlimrankError(f"No gradient reached {site.name}: calibrate on more text or leave it dense.")
        share = 1.0 if site.role in self.scalar else self.shrink
        gram = site.outputs.mean()
        if share == "auto":
            share = ledoit_wolf(site.outputs, gram)
        return shrunk_(gram, share).div_(2)

    def held_out_inputs(self, site: Site) -> Grams | None:
        """The right Gram of the held-out windows."""
        return None if site.held_out is None else Grams(right=site.held_out.mean())


def ledoit_wolf(outputs: OutputMoments, gram: Tensor | None = None) -> float:
    """The share of the mean diagonal that minimises E|G_shrunk - G_true|_F^2 (Ledoit and Wolf, 2004), in [0, 1].

    (E|g|^4 - |G|_F^2) / T over |G - tr(G)/m I|_F^2, tokens counted as independent; gram: G (m, m), where it is at hand.
    """
    gram = outputs.mean() if gram is None else gram
    square = torch.linalg.vector_norm(gram).square().item()
    spread = square - len(gram) * gram.diagonal().mean().square().item()
    variance = (outputs.fourth / outputs.tokens - square) / outputs.tokens
    return min(1.0, max(0.0, variance) / spread) if spread > 0 else 1.0
