"""Moments: what calibration saw at every linear and every block, as plain tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, cast

import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.numerics.gram_sum import GramSum
from slimrank.runtime.world import World


class _PerToken:
    gram: Tensor
    tokens: int

    def mean(self) -> Tensor:
        """The Gram per token, which the caller may write to."""
        return self.gram / self.tokens


@dataclass
class InputMoments(_PerToken):
    """What reached one distinct input of width n.

    gram: H = sum x x^T (n, n) float64; absolute: sum |x| (n,) float64; tokens: the number of summands.
    """

    gram: Tensor
    absolute: Tensor
    tokens: int = 0


@dataclass
class OutputMoments(_PerToken):
    """What the loss's gradient g (nats, summed over tokens) was at a linear's output of width m.

    gram: sum g g^T (m, m) float64; fisher_rows: sum over windows of the row sums of (dL/dW)^2 (m,);
    gradient_norm: |sum over windows of dL/dW|_F; fourth: sum |g|^4; tokens, windows: the number of summands.
    """

    gram: Tensor
    fisher_rows: Tensor
    gradient_norm: float = 0.0
    fourth: float = 0.0
    tokens: int = 0
    windows: int = 0


@dataclass
class BlockMoments:
    """A block's output hidden states: gram (d, d) float64, and the summed cosine between its input and output."""

    gram: Tensor
    cosine: float = 0.0
    tokens: int = 0


class _Packed:
    """Moments whose Gram is held in half the space and made whole whenever it is asked for."""

    def __init__(self, sums: GramSum, **rest: Any) -> None:
        self.sums = sums
        self.__dict__.update(rest)

    def __getattr__(self, name: str) -> Any:
        if name != "gram":
            raise AttributeError(name)
        return self.sums.full()

    def mean(self) -> Tensor:
        """The Gram per token, made without a second one beside it."""
        return self.sums.full().div_(self.tokens)

    def add_up(self, world: World) -> None:
        """Make the sums over this process's windows those over all."""
        world.add_up(self.sums.packed)
        for one in fields(self):  # type: ignore[arg-type]
            value = None if one.name == "gram" else getattr(self, one.name)
            if isinstance(value, Tensor):
                world.add_up(value)
            elif value is not None:
                setattr(self, one.name, type(value)(world.total(value)))


class PackedInput(_Packed, InputMoments):
    """InputMoments that are being summed, or come from a piece."""

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "PackedInput":
        """Before the first token."""
        return cls(GramSum.empty(width, device), absolute=zeros(width, device), tokens=0)

    def add(self, x: Tensor) -> None:
        """Add the tokens of x (..., n); products in float32, sums in float64."""
        x = x.detach().reshape(-1, x.shape[-1])
        self.sums.add(x)
        self.absolute += x.float().abs().sum(0).double()
        self.tokens += len(x)


class PackedOutput(_Packed, OutputMoments):
    """OutputMoments that are being summed, or come from a piece."""

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "PackedOutput":
        """Before the first token."""
        return cls(GramSum.empty(width, device), fisher_rows=zeros(width, device))


class PackedBlock(_Packed, BlockMoments):
    """BlockMoments that are being summed, or come from a piece."""

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "PackedBlock":
        """Before the first token."""
        return cls(GramSum.empty(width, device))

    def add(self, before: Tensor, after: Tensor) -> None:
        """Add the tokens of a batch (batch, tokens, d); the cosine is a tensor until `settle` is called."""
        before, after = (h.detach().reshape(-1, h.shape[-1]).float() for h in (before, after))
        self.sums.add(after)
        cosines = torch.nn.functional.cosine_similarity(before, after, dim=-1).double().sum()
        self.cosine = cast(float, self.cosine + cosines)
        self.tokens += len(after)

    def settle(self) -> None:
        """Read the sums from the device, once for all batches."""
        self.cosine = float(self.cosine)


def zeros(width: int, device: torch.device) -> Tensor:
    """(width,) float64."""
    return torch.zeros(width, dtype=torch.float64, device=device)


@dataclass
class Moments:
    """Everything calibration keeps.

    inputs: by the first linear that saw an input; leader: of every linear, the linear whose input it shares;
    outputs: by linear, empty unless gradients were asked for; blocks: by decoder block.
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

    def short_of_tokens(self) -> list[str]:
        """The linears whose Gram is wider than the tokens it was summed over."""
        short = {name for name, i in self.inputs.items() if i.tokens < len(i.absolute)}
        return [linear for linear, leader in self.leader.items() if leader in short]
