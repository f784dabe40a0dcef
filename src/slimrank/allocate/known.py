"""Measured losses in a file, so that a search that was killed goes on with them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slimrank.allocate.base import Ranks
from slimrank.runtime.digests import sha256_of_json
from slimrank.store.disk import disk_errors
from slimrank.store.pieces import Pieces


@dataclass(frozen=True)
class Measured:
    """value: the loss, summed over windows; passes: the blocks that were run for it."""

    value: float
    passes: int


def key_of(kind: str, changes: Ranks) -> str:
    """A key for a kind of loss (`kl`, `nats`) of the assignment that differs from the base by `changes`."""
    named = sorted([[*unit.names], rank] for unit, rank in changes.items())
    return json.dumps([kind, named])


class Known:
    """Measured losses by key; with pieces on disk each is a line of `measured.DIGEST.jsonl`.

    what: JSON of all that a loss depends on beside its key, from which the file's name is made. writes: whether this
    process writes the file.
    """

    def __init__(self, pieces: Pieces | None, what: Any, *, writes: bool = True) -> None:
        name = f"measured.{sha256_of_json(what)[:16]}.jsonl"
        self._file: Path | None = None if pieces is None else pieces.file(name)
        self._writes = writes
        self._found = dict(self._lines(self._file)) if self._file and self._file.exists() else {}

    def __contains__(self, key: str) -> bool:
        return key in self._found

    def __getitem__(self, key: str) -> Measured:
        return self._found[key]

    @property
    def passes(self) -> int:
        """The blocks that were run for all of them."""
        return sum(measured.passes for measured in self._found.values())

    def has(self, kind: str) -> bool:
        """Whether any loss of this kind is known."""
        return any(json.loads(key)[0] == kind for key in self._found)

    def add(self, key: str, measured: Measured) -> None:
        """Add one; raises a SlimrankError if the disk is full."""
        self._found[key] = measured
        if self._file is not None and self._writes:
            line = json.dumps([key, measured.value, measured.passes])
            with disk_errors(self._file.parent), self._file.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def _lines(self, path: Path) -> Iterator[tuple[str, Measured]]:
        """What the file holds; a last line that a kill left unfinished is cut off."""
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if self._writes and whole < len(content):
            os.truncate(path, whole)
        for line in content[:whole].splitlines():
            key, value, passes = json.loads(line)
            yield key, Measured(value, passes)
