"""Files that appear whole or not at all."""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from slimrank.errors import UsageError
from slimrank.store.disk import disk_errors

LONGEST_NAME = 255 - len("..") - len(".progress.partial-01234567")  # a folder's, for the longest name beside it


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` (UTF-8), which holds either its old content or all of the new at any moment.

    Raises a SlimrankError where the disk is full or the place can't be written.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with disk_errors(path):
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(out: Path, *, overwrite: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a new directory beside `out` that becomes `out` when the block ends, and vanishes when it fails.

    An existing folder `out` keeps its content until the new one is complete. Raises UsageError when `out` holds
    something and `overwrite` is false, or another process is writing it, and SlimrankError when its disk has less than
    `needed_bytes` or fills.
    """
    check_free(out, overwrite)
    out = out.resolve()
    tag = uuid.uuid4().hex[:8]
    partial, old = (_beside(out, f"{role}-{tag}") for role in ("partial", "old"))
    with disk_errors(out, needed_bytes):
        out.parent.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            _clear(out)
            check_free(out, overwrite)
            try:
                if shutil.disk_usage(out.parent).free < needed_bytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                partial.mkdir()
                yield partial
                _swap(partial, out, old)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
                if out.exists():
                    shutil.rmtree(old, ignore_errors=True)


def place_of(out: Path) -> Path:
    """`out` as an absolute path; raises a UsageError where nothing can have that name."""
    if "\x00" in str(out):
        raise UsageError("The output's name holds a NUL character: name another --out.")
    place = out.resolve()
    if not place.name:
        raise UsageError(f"The output {out} is the root of the file system: name a folder inside it.")
    return place


def check_free(out: Path, overwrite: bool) -> None:
    """Raise a UsageError when `out` can't become a new folder: a file, a mount, a full folder not to be overwritten.

    Nor can a folder that holds the current one, or a name that leaves no room for the files beside it.
    """
    place = place_of(out)
    if len(os.fsencode(place.name)) > LONGEST_NAME:
        raise UsageError(
            f"The output's name {place.name[:40]}... has {len(os.fsencode(place.name))} bytes and may have "
            f"{LONGEST_NAME}, since files beside it have longer names: name a shorter --out."
        )
    if place.exists() and not place.is_dir():
        raise UsageError(f"The output {out} is a file; name a folder.")
    if Path.cwd().is_relative_to(place):
        raise UsageError(
            f"The output {out} is the current folder or holds it, and would be replaced as a whole: name another "
            "folder, such as a new one in it."
        )
    if place.is_mount():
        raise UsageError(f"The output {out} is a mount point, which cannot be replaced; name a folder inside it.")
    if not overwrite and place.is_dir() and any(place.iterdir()):
        raise UsageError(f"The output folder {out} is not empty; name another or pass --overwrite.")


def recover(out: Path) -> None:
    """Clear away what a process that was killed while it wrote `out` left beside it.

    Its half-written folder goes; the result that it was about to replace comes back.
    """
    out = out.resolve()
    if out.parent.is_dir() and any(_left(out, "partial", "old", "lock")):
        with _alone(out):
            _clear(out)


def find(folder: Path) -> Path:
    """`folder`, its old content brought back where it is missing since a writer was killed while it replaced that."""
    with suppress(OSError, ValueError):  # no place that can be written, no name of a file
        if folder.name and not folder.exists():
            recover(folder)
    return folder


def discard(folder: Path, out: Path) -> None:
    """Remove `folder`, which stands beside `out`: at once as others see it, whenever this process is killed."""
    doomed = _beside(out.resolve(), f"partial-{uuid.uuid4().hex[:8]}")
    folder.replace(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _clear(out: Path) -> None:
    for partial in _left(out, "partial"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)
    for old in _left(out, "old"):
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.replace(out)


def _left(out: Path, *roles: str) -> list[Path]:
    """What is in these roles beside `out`, or in any role beside one of those."""
    tag = "(-[0-9a-f]{8})?"
    name = re.compile(rf"\.{{1,2}}{re.escape(out.name)}\.({'|'.join(roles)}){tag}(\.(partial|old|lock){tag})?")
    return [path for path in out.parent.iterdir() if name.fullmatch(path.name)]


def _beside(out: Path, role: str) -> Path:
    return out.with_name(f".{out.name}.{role}")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No other process writes `out` inside."""
    path = _beside(out, "lock")
    with locked(path, out):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, out: Path) -> Iterator[None]:
    """The lock file `path` is this process's inside; one that a killed process left does not count.

    Raises:
        UsageError: where another process has it, which writes `out`.
    """
    lock = FileLock(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:  # more than once, since its last owner may remove the file while it is opened
            lock.acquire(timeout=0.2, poll_interval=0.05)
        except Timeout:
            raise UsageError(f"Another process is writing {out}: wait for it, or name another --out.") from None
    try:
        yield
    finally:
        lock.release()


def _swap(new: Path, out: Path, old: Path) -> None:
    """Move `new` to `out`, and what was there to `old`; when that fails, `out` is as it was."""
    try:
        if out.exists():
            out.replace(old)
        new.replace(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.replace(out)
        raise
