"""Disk sizes, and disk errors as sentences."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from slimrank.errors import SlimrankError, UsageError


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder, at any depth; 0 if it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def disk_errors(place: Path, needed_bytes: int = 0) -> Iterator[None]:
    """Turn a full or unwritable disk into a SlimrankError; safetensors gives the system's error only as text."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or f"os error {errno.ENOSPC}" in str(error)
        if full:
            needs = f"{place} needs {needed_bytes:,} bytes" if needed_bytes else f"no room for {place}"
            raise SlimrankError(f"The disk is full: {needs}; free some or name a folder on another disk.") from error
        raise SlimrankError(f"{place} could not be written ({error}): check the path and its permissions.") from error


def check_file(option: str, file: Path | None) -> None:
    """Raise a UsageError if the `file` given by an option is a folder, or its parent folder does not exist."""
    if file and file.is_dir():
        raise UsageError(f"{option} {file} is a folder: name a file.")
    if file and not file.parent.is_dir():
        raise UsageError(f"{option} {file}: the folder {file.parent} does not exist.")
