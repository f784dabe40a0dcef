"""Hidden states on their way through a decoder, a block at a time."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from slimrank.model import Call, Decoder


class Stream:
    """The hidden states of a set of windows at one depth, in batches.

    ids: (windows, tokens); `hidden[b]` is batch b's (batch, tokens, width) before block `depth`.
    """

    def __init__(self, decoder: Decoder, ids: Tensor, batch: int) -> None:
        self.decoder = decoder
        self.ids = list(ids.to(decoder.device).split(batch))
        self.depth = 0
        self.hidden: list[Tensor] = []
        self.calls: list[list[Call]] = []
        for chunk in self.ids:
            hidden, calls = decoder.enter(chunk)
            self.hidden.append(hidden)
            self.calls.append(self._interned(calls))

    def _interned(self, calls: list[Call]) -> list[Call]:
        """The previous batch's calls where they are equal, so that masks and rotary tables are held once."""
        if self.calls and all(_equal(a, b) for a, b in zip(self.calls[-1], calls, strict=True)):
            return self.calls[-1]
        return calls

    def outputs(self) -> Iterator[Tensor]:
        """Block `depth`'s output, batch by batch, the stream staying where it is."""
        for batch in range(len(self.hidden)):
            yield self.output(batch)

    @torch.no_grad()
    def output(self, batch: int) -> Tensor:
        """Block `depth`'s output for one batch, the stream staying where it is."""
        return self.decoder.run(self.depth, self.hidden[batch], self.calls[batch][self.depth])

    def advance(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Run block `depth` and step behind it; yields each batch's hidden states before and after."""
        for index, output in enumerate(self.outputs()):
            before, self.hidden[index] = self.hidden[index], output
            yield before, output
        self.depth += 1


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return (
            isinstance(a, Tensor) and isinstance(b, Tensor) and (a is b or (a.shape == b.shape and torch.equal(a, b)))
        )
    if isinstance(a, Call) and isinstance(b, Call):
        return _equal(a.args, b.args) and _equal(a.kwargs, b.kwargs)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return bool(a is b or a == b)


def default_batch(window: int) -> int:
    """Windows a batch, so that about 4096 tokens are in flight."""
    return max(1, 4096 // window)
