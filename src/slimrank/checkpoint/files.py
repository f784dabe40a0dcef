"""Files that appear whole or not at all."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slimrank.errors import UsageError
from slimrank.store.disk import disk_errors


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` (UTF-8), which holds either its old content or all of the new at any moment."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(out: Path, *, overwrite: bool = False, needed_bytes: int = 0) -> Iterator[Path]:
    """Yield a new directory beside `out` that becomes `out` when the block ends, and vanishes when it fails.

    An existing folder `out` keeps its content until the new one is complete. Raises UsageError when `out` holds
    something and `overwrite` is false, and SlimrankError when its disk has less than `needed_bytes` or fills.
    """
    out = out.resolve()
    check_free(out, overwrite)
    tag = uuid.uuid4().hex[:8]
    partial, old = (out.with_name(f".{out.name}.{role}-{tag}") for role in ("partial", "old"))
    try:
        with disk_errors(out, needed_bytes):
            out.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(out.parent).free < needed_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            partial.mkdir()
            yield partial
            _swap(partial, out, old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def check_free(out: Path, overwrite: bool) -> None:
    """Raise a UsageError when `out` is a file, or a folder that holds something and is not to be overwritten."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"The output {out} is a file; name a folder.")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise UsageError(f"The output folder {out} is not empty; name another or pass --overwrite.")


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
