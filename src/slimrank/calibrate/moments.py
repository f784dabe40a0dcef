"""Moments: sums over calibration tokens at every linear and every block."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.numerics.gram_sum import GramSum
from slimrank.runtime.world import World


@dataclass
class TokenSums:
    """sums: of x x^T over `tokens` tokens, packed in half the space."""

    sums: GramSum
    tokens: int = field(default=0, kw_only=True)

    def gram(self) -> Tensor:
        """The sum of x x^T (n, n), float64, a new tensor."""
        return self.sums.full()

    def mean(self) -> Tensor:
        """The mean of x x^T over tokens (n, n), float64, a new tensor that the caller may write to."""
        return self.sums.full().div_(self.tokens)

    def add_up(self, world: World) -> None:
        """Add up the sums over all processes, in place."""
        world.add_up(self.sums.packed)
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                world.add_up(value)
            elif isinstance(value, int):
                setattr(self, item.name, int(world.total(value)))


@dataclass
class InputMoments(TokenSums):
    """Sums over the tokens x (n,) of one input: sums, H = sum x x^T (n, n); absolute, sum |x| (n,) float64.

    routed: of an expert's input how many tokens were routed to it, while `tokens` are then all of the text's (see
    calibrate.experts); None of other inputs.
    """

    absolute: Tensor
    routed: int | None = None

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "InputMoments":
        """Before the first token."""
        return cls(GramSum.empty(width, device), zeros(width, device))

    def add(self, x: Tensor) -> None:
        """Add the tokens of x (..., n), multiplied in float32 and summed in float64."""
        x = x.detach().reshape(-1, x.shape[-1])
        self.sums.add(x)
        self.absolute += x.float().abs().sum(0).double()
        self.tokens += len(x)


@dataclass
class OutputMoments(TokenSums):
    """Sums over tokens of the gradient g = dL/dy (m,) at a linear's output y, L in nats summed over tokens.

    sums: G = sum g g^T (m, m); fisher_rows: sum over windows of the row sums of (dL/dW)^2 (m,) float64; fourth:
    sum |g|^4, a float64 scalar; gradient_norm: |sum over windows of dL/dW|_F; windows: their number.
    """

    fisher_rows: Tensor
    fourth: Tensor
    gradient_norm: float = 0.0
    windows: int = 0

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "OutputMoments":
        """Before the first token."""
        return cls(GramSum.empty(width, device), zeros(width, device), zeros(1, device)[0])


@dataclass
class BlockMoments(TokenSums):
    """Sums over tokens of a block's output h (d,): sums, of h h^T (d, d); cosine, of cos(input, h), a scalar."""

    cosine: Tensor

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "BlockMoments":
        """Before the first token."""
        return cls(GramSum.empty(width, device), zeros(1, device)[0])

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add a batch of hidden states (batch, tokens, d) at the block's input and output."""
        before, after = (h.detach().reshape(-1, h.shape[-1]).float() for h in (before, after))
        self.sums.add(after)
        self.cosine += torch.nn.functional.cosine_similarity(before, after, dim=-1).double().sum()
        self.tokens += len(after)


def zeros(width: int, device: torch.device) -> Tensor:
    """Zeros (width,) in float64."""
    return torch.zeros(width, dtype=torch.float64, device=device)


@dataclass
class Moments:
    """All moments of a set of windows.

    inputs: by the first linear that reads an input; leader: by linear, the first one that reads the same input;
    outputs: by linear; blocks: by block index. The last two are empty unless Needs asks for them.
    """

    inputs: Mapping[str, InputMoments] = field(default_factory=dict)
    leader: dict[str, str] = field(default_factory=dict)
    outputs: Mapping[str, OutputMoments] = field(default_factory=dict)
    blocks: Mapping[int, BlockMoments] = field(default_factory=dict)

    def input_of(self, linear: str) -> InputMoments:
        """The moments of a linear's input."""
        if linear not in self.leader:
            raise SlimrankError(f"No calibration token reached {linear}: calibrate on more text or leave it dense.")
        return self.inputs[self.leader[linear]]

    def output_of(self, linear: str) -> OutputMoments:
        """The moments of the gradient at a linear's output."""
        if linear not in self.outputs:
            raise SlimrankError(f"No gradient reached {linear}: calibrate on more text or leave it dense.")
        return self.outputs[linear]

    def routed(self, experts: Iterable[str]) -> dict[str, int]:
        """By linear of an expert, the tokens routed to it; those that calibration did not collect are left out."""
        found = {name: self.inputs[name].routed for name in experts if name in self.inputs}
        return {name: count for name, count in found.items() if count is not None}

    def unrouted(self, experts: Iterable[str]) -> list[str]:
        """Those of these linears of experts to which no token was routed."""
        return [name for name, count in self.routed(experts).items() if count == 0]

    def short_of_tokens(self) -> list[str]:
        """The linears whose input has more channels than calibration tokens, so that H is singular."""
        short = {name for name, x in self.inputs.items() if x.tokens < len(x.absolute)}
        return [linear for linear, leader in self.leader.items() if leader in short]
