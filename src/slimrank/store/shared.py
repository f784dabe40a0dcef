"""The finished pieces of a run of several processes: one folder, written by the first process for all."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from slimrank.runtime.world import World
from slimrank.store.pieces import DiskPieces, Facts


class SharedPieces:
    """Pieces in a folder that every process sees.

    While the processes work together, all of them save and drop, and the first one's is what counts: no process sees it
    before it saves itself, and every process afterwards. While they work apart each saves and drops keys of its own.
    """

    lasting = True

    def __init__(self, pieces: DiskPieces, world: World) -> None:
        self._pieces, self._world = pieces, world

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """At once in any case, for the others to see; a SlimrankError where the disk is full, as DiskPieces has it."""
        with self._world.turn() as mine:
            if mine:
                self._pieces.save(key, tensors, facts)

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """As DiskPieces has it."""
        return self._pieces.load(key)

    def __contains__(self, key: object) -> bool:
        return key in self._pieces

    def drop(self, key: str) -> None:
        """Removes the file."""
        with self._world.turn() as mine:
            if mine:
                self._pieces.drop(key)

    def file(self, name: str) -> Path | None:
        """A file of that name among the pieces."""
        return self._pieces.file(name)
