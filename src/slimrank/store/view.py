"""Pieces of several runs in one store, some of them shared."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from slimrank.store.pieces import Facts, Pieces


class View:
    """One run's view of a store: keys are in the run's folder `own`, but for shared ones.

    shared: maps the first part of a key to a shared folder. A shared piece is saved once and never dropped by a run.
    """

    def __init__(self, pieces: Pieces, own: str, shared: Mapping[str, str]) -> None:
        self._pieces, self._own, self._shared = pieces, own, dict(shared)
        self.lasting = pieces.lasting

    def _key(self, key: str) -> str:
        first, slash, rest = key.partition("/")
        return f"{self._shared[first]}{slash}{rest}" if first in self._shared else f"{self._own}/{key}"

    def _is_shared(self, key: str) -> bool:
        return key.partition("/")[0] in self._shared

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Save a piece, unless it is shared and exists."""
        if not (self._is_shared(key) and key in self):
            self._pieces.save(self._key(key), tensors, facts, later=later)

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """The tensors and facts of a key."""
        return self._pieces.load(self._key(key))

    def __contains__(self, key: object) -> bool:
        return self._key(str(key)) in self._pieces

    def drop(self, key: str) -> None:
        """Remove a key, unless it is shared."""
        if not self._is_shared(key):
            self._pieces.drop(self._key(key))

    def file(self, name: str) -> Path | None:
        """The path for a file of another format in the run's own folder; None if pieces are in memory."""
        file = self._pieces.file(self._key(name))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        return file
