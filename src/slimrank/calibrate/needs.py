"""Needs: the statistics that the later steps ask of calibration."""

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Labels = Literal["text", "sampled"]


@dataclass(frozen=True)
class Needs:
    """Input moments are always collected; the rest only on request.

    gradients: moments of the loss's gradient at every linear's output; of_weights: also of the weights' gradients;
    labels: next tokens of the loss, the text's or sampled from the model; tokens: calibration tokens of the gradient
    pass, None for all; blocks: moments of every block's output; all_experts: inputs of experts from all tokens, not
    from those routed to them; ends: with gradients, moments of embedding and head.
    """

    gradients: bool = False
    of_weights: bool = False
    labels: Labels = "text"
    tokens: int | None = None
    blocks: bool = False
    all_experts: bool = False
    ends: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        """The union of both needs."""
        if not (self.gradients and other.gradients):
            both = self if self.gradients else other
            return replace(
                both,
                blocks=self.blocks or other.blocks,
                all_experts=self.all_experts or other.all_experts,
                ends=self.ends or other.ends,
            )
        tokens = None if None in (self.tokens, other.tokens) else max(self.tokens or 0, other.tokens or 0)
        return Needs(
            gradients=True,
            of_weights=self.of_weights or other.of_weights,
            labels="sampled" if "sampled" in (self.labels, other.labels) else "text",
            tokens=tokens,
            blocks=self.blocks or other.blocks,
            all_experts=self.all_experts or other.all_experts,
            ends=self.ends or other.ends,
        )

    def gradient_windows(self, windows: Tensor) -> Tensor:
        """The calibration windows (count, tokens) that the gradient pass reads, from the first on."""
        return windows if self.tokens is None else windows[: -(-self.tokens // windows.shape[1])]


@dataclass(frozen=True)
class Work:
    """What a step takes, for the estimate before a run.

    tokens: that it reads; blocks, head: by token, the forward passes of every block and of the head, a backward pass
    counting as two; decompositions: of every linear.
    """

    tokens: float = 0
    blocks: float = 1.0
    head: float = 0.0
    decompositions: float = 0.0


@dataclass(frozen=True)
class Holds:
    """What a step holds in memory at once, for the estimate before a run.

    tokens: that it holds something of; by token, states: hidden states, every_block: also those before every block and
    behind the last, outputs: what a block's linears give, rows: float32 numbers for every word of the vocabulary.
    logits: float32 numbers in work, on a CPU and on a device.
    """

    tokens: int = 0
    states: int = 0
    every_block: bool = False
    outputs: bool = False
    rows: int = 0
    logits: tuple[int, int] = (0, 0)
