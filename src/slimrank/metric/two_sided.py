"""The two-sided metric: the error is the expected rise of the loss, so squared singular values are nats per token."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.calibrate.moments import InputMoments, OutputMoments
from slimrank.calibrate.needs import Labels, Needs
from slimrank.metric.base import Metric
from slimrank.numerics.grams import shrunk_


class TwoSided(Metric):
    """L L^T = G / 2, R R^T = H / T: |L^T E R|_F^2 is the expected rise of the loss, in nats per token.

    It is the second-order term tr(E^T G E H) / 2 of the loss for an error E of one weight, with G = E[g g^T] and
    H = E[x x^T] over tokens and the loss's Hessian taken as the Kronecker product of the two (K-FAC's assumption).
    labels: whether g is the gradient for the text's next token or for one sampled from the model. shrink: G's share
    that is replaced by its mean diagonal, `auto` for Ledoit and Wolf's. tokens: calibration tokens that g is taken
    on, rounded up to whole windows; None for all.
    """

    name: Literal["two_sided"] = "two_sided"

    labels: Labels = "text"
    shrink: Literal["auto"] | Annotated[float, Field(ge=0, le=1)] = "auto"
    tokens: Annotated[int, Field(ge=1)] | None = 16_384

    @property
    def needs(self) -> Needs:
        """Gradients at the linears' outputs."""
        return Needs(gradients=True, labels=self.labels, tokens=self.tokens)

    def left(self, outputs: OutputMoments) -> Tensor:
        """L L^T = G / 2 (m, m), G shrunk."""
        gram = outputs.mean()
        share = ledoit_wolf(outputs, gram) if self.shrink == "auto" else self.shrink
        return shrunk_(gram, share).div_(2)

    def right(self, inputs: InputMoments) -> Tensor:
        """R R^T = H / T (n, n)."""
        return inputs.mean()


def ledoit_wolf(outputs: OutputMoments, gram: Tensor | None = None) -> float:
    """The share of the mean diagonal that minimises E|G_shrunk - G_true|_F^2 (Ledoit and Wolf, 2004), in [0, 1].

    (E|g|^4 - |G|_F^2) / T over |G - tr(G)/m I|_F^2, tokens taken as independent; gram: G (m, m), if it is known.
    """
    gram = outputs.mean() if gram is None else gram
    square = torch.linalg.vector_norm(gram).square().item()
    spread = square - len(gram) * gram.diagonal().mean().square().item()
    variance = (outputs.fourth.item() / outputs.tokens - square) / outputs.tokens
    return min(1.0, max(0.0, variance) / spread) if spread > 0 else 1.0
