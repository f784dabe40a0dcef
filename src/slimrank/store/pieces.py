"""The finished pieces of a run: tensors and facts by key, kept in memory or in files that survive a kill."""

import glob
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.runtime.digests import sha256_of, sha256_of_text
from slimrank.store.disk import disk_errors

Facts = dict[str, Any]
FACTS = "facts"
NAME_BYTES = 120  # of a key in a file's name, which holds a SHA-256 too and may have 255


class Pieces(Protocol):
    """What a step finished, by a key such as `inputs/3`; a step asks `key in pieces` before it works.

    A refiner that trains can keep its state here: `run.pieces.save("distill/state", tensors, {"step": 120})`,
    and after a kill `tensors, facts = run.pieces.load("distill/state")`, where `in` says that there is one.
    """

    lasting: bool

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Keep tensors and JSON facts under `key`, in the place of what was there.

        later: the caller goes on meanwhile, and changes no tensor; an error is raised at the next call.
        """

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """What was kept; the tensors are on the CPU where the pieces are on disk."""

    def __contains__(self, key: object) -> bool: ...

    def drop(self, key: str) -> None:
        """Forget it, if it is there."""

    def file(self, name: str) -> Path | None:
        """A file of that name among the pieces, for what brings a format of its own; None where they do not last."""


class MemoryPieces:
    """Pieces that end with the process."""

    lasting = False

    def __init__(self) -> None:
        self._held: dict[str, tuple[dict[str, Tensor], Facts]] = {}

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Holds the tensors themselves."""
        self._held[key] = dict(tensors), dict(facts or {})

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """The same tensors."""
        return self._held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def drop(self, key: str) -> None:
        """Lets go of the tensors."""
        self._held.pop(key, None)

    def clear(self, folder: str = "") -> None:
        """Drop every piece whose key begins with this folder, by default all."""
        for key in [key for key in self._held if key.startswith(folder and f"{folder}/")]:
            self.drop(key)

    def file(self, name: str) -> Path | None:
        """There are no files."""
        return None


class DiskPieces:
    """Pieces as safetensors files, written aside and renamed, the SHA-256 of each in its name.

    `folder/inputs/3.<sha256>.safetensors`. What an earlier process left is verified when it is first loaded.
    """

    lasting = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[Path] = set()
        self._writer = ThreadPoolExecutor(1, "slimrank-writer")
        self._writing: Future[None] | None = None

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Raises a SlimrankError where the disk is full, what was there staying as it was."""
        self.settle()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if later:
            self._writing = self._writer.submit(self._write, key, plain, facts)
        else:
            self._write(key, plain, facts)

    def settle(self) -> None:
        """Wait for what is being written; raises its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, key: str, plain: dict[str, Tensor], facts: Facts | None) -> None:
        path = self._path(key)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        before = self._found(key)
        with disk_errors(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                save_file(plain, aside, metadata={FACTS: json.dumps(facts or {})})
                final = path.with_name(f"{path.name}.{sha256_of(aside)}.safetensors")
                aside.replace(final)
            finally:
                aside.unlink(missing_ok=True)
        self._verified.add(final)
        for old in before:
            if old != final:
                old.unlink()

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """Tensors that are mapped to the file, read when they are used.

        Raises:
            SlimrankError: if the file is not what was written.
        """
        self.settle()
        path = self._found(key)[0]
        self._verify(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads((file.metadata() or {}).get(FACTS, "{}"))

    def __contains__(self, key: object) -> bool:
        self.settle()
        return bool(self._found(str(key)))

    def drop(self, key: str) -> None:
        """Removes the file."""
        self.settle()
        for path in self._found(key):
            path.unlink()

    def clear(self, folder: str = "") -> None:
        """Drop every piece and file, or those in this folder alone."""
        self.settle()
        for path in list((self.folder / folder).rglob("*")):
            if not path.is_dir() and path.name != "lock":
                path.unlink()

    def remove(self) -> None:
        """Drop every piece, and the folder."""
        with suppress(SlimrankError):
            self.settle()
        shutil.rmtree(self.folder, ignore_errors=True)

    def drop_empty(self, but: str) -> None:
        """Remove the folder if nothing was finished but that; an error of the last writing is told by nobody."""
        with suppress(SlimrankError):
            self.settle()
        if set(self.folder.rglob("*.safetensors")) <= set(self._found(but)):
            self.remove()

    def file(self, name: str) -> Path | None:
        """A file of that name among the pieces, for what brings a format of its own; None where they do not last."""
        return self.folder / name

    def _path(self, key: str) -> Path:
        """Where a key's file is, but for its digest; of a long key the beginning and a digest stand for it."""
        folder, _, name = key.rpartition("/")
        if len(os.fsencode(name)) > NAME_BYTES:
            name = f"{os.fsencode(name)[:48].decode(errors='ignore')}-{sha256_of_text(name)}"
        return self.folder / folder / name

    def _found(self, key: str) -> list[Path]:
        """The files of a key, the newest first: two where a process was killed between writing and removing."""
        path = self._path(key)
        name = f"{glob.escape(path.name)}.*.safetensors"
        found = path.parent.glob(name) if path.parent.is_dir() else ()
        return sorted(found, key=lambda file: file.stat().st_mtime_ns, reverse=True)

    def _verify(self, path: Path) -> None:
        if path in self._verified:
            return
        if sha256_of(path) != path.name.split(".")[-2]:
            raise SlimrankError(f"The progress file {path} was damaged: remove it and give the same command again.")
        self._verified.add(path)
