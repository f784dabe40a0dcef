"""Finished work of a run of several processes, in one folder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from slimrank.runtime.world import World
from slimrank.store.pieces import DiskPieces, Facts


class SharedPieces:
    """Pieces in a folder that all processes share.

    Together, all processes call save and drop, and only the first one writes, between two barriers. Apart (see
    World.apart), each process writes keys of its own.
    """

    lasting = True

    def __init__(self, pieces: DiskPieces, world: World) -> None:
        self._pieces, self._world = pieces, world

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """As DiskPieces.save, but never in the background, so that the other processes can load it."""
        with self._world.turn() as mine:
            if mine:
                self._pieces.save(key, tensors, facts)

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """As DiskPieces.load."""
        return self._pieces.load(key)

    def __contains__(self, key: object) -> bool:
        return key in self._pieces

    def drop(self, key: str) -> None:
        """Remove the file of a key."""
        with self._world.turn() as mine:
            if mine:
                self._pieces.drop(key)

    def file(self, name: str) -> Path | None:
        """The path for a file of another format beside the pieces."""
        return self._pieces.file(name)
