"""What the later steps need calibration to leave."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Labels = Literal["text", "sampled"]


@dataclass(frozen=True)
class Needs:
    """Moments of every input are always there; everything else is summed only where it is asked for.

    gradients: the moments of the loss's gradient at every linear's output; of_weights: what those say of the gradients
    of the weights, too; labels: the next tokens that the loss is taken for; tokens: how many calibration tokens the
    gradients are taken on, None for all; blocks: the moments of every block's output.
    """

    gradients: bool = False
    of_weights: bool = False
    labels: Labels = "text"
    tokens: int | None = None
    blocks: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """What serves both."""
        if not (self.gradients and other.gradients):
            both = self if self.gradients else other
            return Needs(both.gradients, both.of_weights, both.labels, both.tokens, blocks=self.blocks or other.blocks)
        tokens = None if None in (self.tokens, other.tokens) else max(self.tokens or 0, other.tokens or 0)
        return Needs(
            gradients=True,
            of_weights=self.of_weights or other.of_weights,
            labels="sampled" if "sampled" in (self.labels, other.labels) else "text",
            tokens=tokens,
            blocks=self.blocks or other.blocks,
        )

    def gradient_windows(self, windows: Tensor) -> Tensor:
        """Of the calibration windows (count, tokens) those that the gradient pass reads."""
        return windows if self.tokens is None else windows[: -(-self.tokens // windows.shape[1])]
