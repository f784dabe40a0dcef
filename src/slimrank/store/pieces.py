"""Finished work of a run (pieces): tensors and JSON facts by key, in memory or in files that survive a kill."""

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
NAME_BYTES = 120  # the most of a key in a file's name, whose limit is 255 with the SHA-256


class Pieces(Protocol):
    """Finished work by a key such as `inputs/3`; a step checks `key in pieces` before it computes.

    A refiner that trains can save its state by `run.pieces.save("distill/state", tensors, {"step": 120})`, and load it
    after a kill by `tensors, facts = run.pieces.load("distill/state")`. lasting: whether pieces survive the process.
    """

    lasting: bool

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Save tensors and JSON facts under `key`, replacing what was there.

        later: may write in the background; the caller must not change the tensors, and errors are raised at the next
        call.
        """

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """The tensors and facts of a key; from disk the tensors are on the CPU."""

    def __contains__(self, key: object) -> bool: ...

    def drop(self, key: str) -> None:
        """Remove a key, if it exists."""

    def file(self, name: str) -> Path | None:
        """The path for a file of another format beside the pieces; None if they are in memory."""


class MemoryPieces:
    """Pieces in memory, lost when the process ends."""

    lasting = False

    def __init__(self) -> None:
        self._held: dict[str, tuple[dict[str, Tensor], Facts]] = {}

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Hold the tensors without copying them."""
        self._held[key] = dict(tensors), dict(facts or {})

    def load(self, key: str) -> tuple[dict[str, Tensor], Facts]:
        """The same tensors as were saved."""
        return self._held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def drop(self, key: str) -> None:
        """Remove a key and release its tensors."""
        self._held.pop(key, None)

    def clear(self, folder: str = "") -> None:
        """Drop the pieces whose keys are in this folder, by default all."""
        for key in [key for key in self._held if key.startswith(folder and f"{folder}/")]:
            self.drop(key)

    def file(self, name: str) -> Path | None:
        """None, since nothing is on disk."""
        return None


class DiskPieces:
    """Pieces as safetensors files `folder/inputs/3.<sha256>.safetensors`, written to a temporary file and renamed.

    A file from an earlier process is verified against its SHA-256 when it is first loaded.
    """

    lasting = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._verified: set[Path] = set()
        self._writer = ThreadPoolExecutor(1, "slimrank-writer")
        self._writing: Future[None] | None = None

    def save(self, key: str, tensors: Mapping[str, Tensor], facts: Facts | None = None, *, later: bool = False) -> None:
        """Save atomically; raises a SlimrankError if the disk is full, leaving the old piece in place."""
        self.settle()
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        if later:
            self._writing = self._writer.submit(self._write, key, plain, facts)
        else:
            self._write(key, plain, facts)

    def settle(self) -> None:
        """Wait for a background write; raises its error."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _write(self, key: str, plain: dict[str, Tensor], facts: Facts | None) -> None:
        path = self._path(key)
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        before = self._files(key)
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
        """The facts, and tensors mapped to the file.

        Raises:
            SlimrankError: if the file's SHA-256 is wrong.
        """
        self.settle()
        path = self._files(key)[0]
        self._verify(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return tensors, json.loads((file.metadata() or {}).get(FACTS, "{}"))

    def __contains__(self, key: object) -> bool:
        self.settle()
        return bool(self._files(str(key)))

    def drop(self, key: str) -> None:
        """Remove the file of a key."""
        self.settle()
        for path in self._files(key):
            path.unlink()

    def clear(self, folder: str = "") -> None:
        """Remove all files in this folder, by default all but the lock."""
        self.settle()
        for path in list((self.folder / folder).rglob("*")):
            if not path.is_dir() and path.name != "lock":
                path.unlink()

    def remove(self) -> None:
        """Remove the folder with all pieces."""
        with suppress(SlimrankError):
            self.settle()
        shutil.rmtree(self.folder, ignore_errors=True)

    def drop_empty(self, but: str) -> None:
        """Remove the folder if it has no piece but that key; an error of a background write is ignored."""
        with suppress(SlimrankError):
            self.settle()
        if set(self.folder.rglob("*.safetensors")) <= set(self._files(but)):
            self.remove()

    def file(self, name: str) -> Path | None:
        """The path for a file of another format beside the pieces; None if they are in memory."""
        return self.folder / name

    def _path(self, key: str) -> Path:
        """The path of a key's file without the SHA-256; a long key is shortened to its beginning and a digest."""
        folder, _, name = key.rpartition("/")
        if len(os.fsencode(name)) > NAME_BYTES:
            name = f"{os.fsencode(name)[:48].decode(errors='ignore')}-{sha256_of_text(name)}"
        return self.folder / folder / name

    def _files(self, key: str) -> list[Path]:
        """The files of a key, newest first; there are two if a process was killed while replacing one."""
        path = self._path(key)
        name = f"{glob.escape(path.name)}.*.safetensors"
        files = path.parent.glob(name) if path.parent.is_dir() else ()
        return sorted(files, key=lambda file: file.stat().st_mtime_ns, reverse=True)

    def _verify(self, path: Path) -> None:
        if path in self._verified:
            return
        if sha256_of(path) != path.name.split(".")[-2]:
            raise SlimrankError(f"The progress file {path} was damaged: remove it and give the same command again.")
        self._verified.add(path)
