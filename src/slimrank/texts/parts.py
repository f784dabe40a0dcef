"""Where windows are drawn from: a part of a text, or some of the rows of token ids that a caller has given."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slimrank.errors import SlimrankError, UsageError

AMPLE_CHARACTERS_PER_TOKEN = 16
Encoder = Callable[[list[str]], list[list[int]]]


class Part(Protocol):
    """A part of a text."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def option(self) -> str:
        """What sets how many windows it gives; "" for a share."""
        ...

    def yields(self, window: int, wanted: int) -> int:
        """How many windows it has without overlap; `wanted` where it clearly has more."""
        ...

    def draw(self, count: int, window: int, seed: int | str) -> Tensor:
        """(count, window) ids, int64, from random places; the same for the same arguments."""
        ...


@dataclass(frozen=True)
class Characters:
    """A part of a text: each window is the first `window` tokens from a random character on."""

    encoder: Encoder
    characters: str
    name: str
    option: str

    def yields(self, window: int, wanted: int) -> int:
        """Counted in tokens, unless there are more than enough characters."""
        if len(self.characters) >= AMPLE_CHARACTERS_PER_TOKEN * window * wanted:
            return wanted
        return len(self.encoder([self.characters])[0]) // window

    def draw(self, count: int, window: int, seed: int | str) -> Tensor:
        """An offset too near the end for a window is drawn again."""
        rng = random.Random(seed)
        rows: list[list[int]] = []
        limit = len(self.characters)
        length = self._slice_length(window)
        while len(rows) < count:
            offsets = [rng.randrange(limit) for _ in range(count - len(rows))]
            found = self._first_tokens(offsets, window, length)
            rows += [found[offset] for offset in offsets if offset in found]
            # what starts after an offset that came out short comes out short as well
            limit = min([limit, *(offset for offset in offsets if offset not in found)])
            require(min(limit, 1), 1, window, self)
        return torch.tensor(rows, dtype=torch.int64).reshape(count, window)

    def _slice_length(self, window: int) -> int:
        """Characters that usually hold a window and a quarter, by the density of the part's beginning."""
        probe = self.characters[: 8 * window]
        density = len(probe) / max(1, len(self.encoder([probe])[0]))
        return int(1.25 * density * window) + 16

    def _first_tokens(self, offsets: list[int], window: int, length: int) -> dict[int, list[int]]:
        """The first `window` ids from each offset on, without the offsets too near the end to have that many."""
        found: dict[int, list[int]] = {}
        pending = list(dict.fromkeys(offsets))
        while pending:
            rows = self.encoder([self.characters[offset : offset + length] for offset in pending])
            found |= {offset: row[:window] for offset, row in zip(pending, rows, strict=True) if len(row) >= window}
            pending = [o for o in pending if o not in found and o + length < len(self.characters)]
            length *= 2
        return found


@dataclass(frozen=True)
class Rows:
    """Rows of token ids (rows, tokens), each a window as it is."""

    ids: Tensor
    name: str
    option: str

    def yields(self, window: int, wanted: int) -> int:
        """The number of rows.

        Raises:
            UsageError: for a window that is not a row.
        """
        if window != self.ids.shape[1]:
            raise UsageError(
                f"--window {window} is not the length of the rows of token ids, {self.ids.shape[1]}: leave it out."
            )
        return len(self.ids)

    def draw(self, count: int, window: int, seed: int | str) -> Tensor:
        """Rows in random order, none twice before all came once."""
        rng, order = random.Random(seed), list[int]()
        while len(order) < count:
            order += rng.sample(range(len(self.ids)), len(self.ids))
        return self.ids[order[:count]]


def require(available: int, asked: int, window: int, part: Part) -> None:
    """Raise a SlimrankError where the part has fewer windows than asked for."""
    if available < asked:
        fewer = (f"{part.option} {available}, " if part.option else "another share, ") if available else ""
        raise SlimrankError(
            f"The text is too short: only {available} of the {asked} windows of {window} tokens fit into {part.name},"
            f" so use {fewer}a smaller --window or more text"
        )
