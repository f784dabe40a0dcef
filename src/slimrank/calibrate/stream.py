"""Hidden states of a set of windows, taken through a decoder a block at a time."""

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slimrank.model.decoder import Call, Decoder
from slimrank.runtime.memory import Room
from slimrank.runtime.track import Track, no_track
from slimrank.store.disk import disk_errors

CPU_LOGITS, DEVICE_LOGITS = 2**22, 2**28  # logits in memory at a time
CPU_TOKENS, DEVICE_TOKENS = 2**12, 2**14
CPU_STATES = 2**21  # elements of the hidden states in flight
Part = tuple[slice, slice]  # windows and tokens


class Stream:
    """The hidden states of windows before block `depth`: hidden[b] is batch b's, (batch, tokens, width).

    ids: (windows, tokens); batch: windows in a batch; copies: sets of states that the caller will hold (see Home).
    """

    def __init__(self, decoder: Decoder, ids: Tensor, batch: int, copies: int = 1) -> None:
        self.decoder = decoder
        self.ids = list(ids.to(decoder.device).split(batch))
        self.depth = 0
        self.hidden: list[Tensor] = []
        self.calls: list[list[Call]] = []
        with decoder.weights.hold(None):
            for chunk in self.ids:
                hidden, calls = decoder.enter(chunk)
                if not self.hidden:
                    self.home = Home(decoder.states_room, hidden.nbytes * len(self.ids) * copies, hidden.device)
                self.hidden.append(self.home.put(hidden))
                self.calls.append(self._interned(calls))

    @property
    def nbytes(self) -> int:
        """Bytes of the hidden states."""
        return sum(hidden.nbytes for hidden in self.hidden)

    def _interned(self, calls: list[Call]) -> list[Call]:
        """The previous batch's calls if they are equal, so that masks and rotary tables are held once."""
        if self.calls and all(_equal(a, b) for a, b in zip(self.calls[-1], calls, strict=True)):
            return self.calls[-1]
        shared: list[Call] = []
        for call in calls:
            shared.append(next((last for last in shared[-1:] if _equal(last, call)), call))
        return shared

    def outputs(self) -> Iterator[Tensor]:
        """Yield block `depth`'s output of every batch, without advancing."""
        for batch in range(len(self.hidden)):
            yield self.output(batch)

    @torch.no_grad()
    def output(self, batch: int) -> Tensor:
        """Block `depth`'s output of one batch, without advancing."""
        return self.decoder.run(self.depth, self.hidden[batch], self.calls[batch][self.depth])

    def advance(self, known: Iterable[Tensor] | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Run block `depth` and advance; yields the hidden states of each batch before and after it.

        known: the block's outputs by batch, if they are known.
        """
        for index, output in enumerate(self.outputs() if known is None else known):
            before = self.hidden[index].to(output.device)
            yield before, output
            self.hidden[index] = self.home.put(output)
        self.depth += 1

    def skip(self, blocks: int) -> None:
        """Advance by a number of blocks."""
        for _ in range(blocks):
            for _ in self.advance():
                pass


class Home:
    """Stores hidden states of `nbytes` in all where they fit: on their device, in host memory, or in files."""

    def __init__(self, room: Room, nbytes: int, device: torch.device) -> None:
        self._to_host = device.type != "cpu" and nbytes > room.device
        self._folder = None
        if (self._to_host or device.type == "cpu") and nbytes > room.host:
            self._folder = tempfile.TemporaryDirectory(prefix="slimrank-states-")

    def put(self, hidden: Tensor) -> Tensor:
        """The same values in that place; a file is unlinked at once and its space freed with the tensor."""
        if self._folder is None:
            return hidden.cpu() if self._to_host else hidden
        path = Path(self._folder.name) / "hidden"
        with disk_errors(path.parent, hidden.nbytes):
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, hidden.nbytes)
            mapped = torch.from_file(str(path), shared=True, size=hidden.numel(), dtype=hidden.dtype)
            path.unlink()
        return mapped.view(hidden.shape).copy_(hidden)


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


def final_states(decoder: Decoder, ids: Tensor, track: Track = no_track, what: str = "reading") -> Stream:
    """The hidden states of this process's share of the windows, behind the last block; what: the progress's name."""
    stream = Stream(decoder, decoder.world.share(ids), default_batch(decoder, ids.shape[1]))
    for _ in track(range(len(decoder)), what, len(decoder)):
        stream.skip(1)
    return stream


def parts_at_once(decoder: Decoder, ids: Tensor) -> Iterator[Part]:
    """Yield the parts of `ids` (windows, tokens) whose logits fit in memory at a time."""
    vocabulary = decoder.model.config.get_text_config().vocab_size
    count, window = ids.shape
    tokens = max(1, (CPU_LOGITS if ids.device.type == "cpu" else DEVICE_LOGITS) // vocabulary)
    windows = max(1, tokens // window)
    for first in range(0, count, windows):
        for start in range(0, window, tokens):
            yield slice(first, first + windows), slice(start, start + tokens)


def default_batch(decoder: Decoder, window: int) -> int:
    """Windows in a batch: 16384 tokens on a device; on a CPU 4096, fewer in wide models."""
    tokens = DEVICE_TOKENS if decoder.device.type != "cpu" else min(CPU_TOKENS, CPU_STATES // decoder.width)
    return max(1, tokens // window)
