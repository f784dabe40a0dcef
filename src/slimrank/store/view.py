"""One run's view of pieces that several runs share."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from slimrank.store.pieces import Facts, Pieces


class View:
    """Pieces under other names: what a key begins with says whether runs share it.

    shared: the folder that the first part of a key stands for. Such a piece is what was saved first, and stays when it
    is dropped, since other runs need it. All other keys are in the folder `own`.
    """

    def __init__(self, pieces: Pieces, own: str, shared: Mapping[str, str]) -> None:
        self._pieces, self._own, self._shared = pieces, own, dict(shared)
        self.lasting = pieces.lasting

    def _key(self, key: str) -> str:
        first, _, rest = key.partition("/")
        return f"{self._shared[first]}/{rest}" if first in self._shared else f"{self._own}/{key}"

    def _is_shared(self, key: str) -> bool:
        return key.partition("/")[0] in self._shared

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Nothing changes where the piece is shared and there."""
        if not (self._is_shared(key) and key in self):
            self._pieces.save(self._key(key), tensors, facts, later=later)

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """What was kept."""
        return self._pieces.load(self._key(key))

    def __contains__(self, key: object) -> bool:
        return self._key(str(key)) in self._pieces

    def drop(self, key: str) -> None:
        """Forget it, unless it is shared."""
        if not self._is_shared(key):
            self._pieces.drop(self._key(key))

    def file(self, name: str) -> Path | None:
        """A file of the run's own."""
        file = self._pieces.file(self._key(name))
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
        return file
