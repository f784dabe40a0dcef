"""The file of measured times in the user's cache folder: {"version", "machines": {machine: {key: times}}}."""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slimrank.checkpoint import write_text
from slimrank.errors import SlimrankError

VERSION = 1
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def times_file() -> Path:
    """slimrank/speed.json in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slimrank" / "speed.json"


def read_times(path: Path, machine: str, key: str) -> Any:
    """What was measured on this machine under this key, None where nothing was.

    Raises:
        ValueError: if the file can't be read or holds something else.
    """
    if not path.exists():
        return None
    try:
        return _machines(path).get(machine, {}).get(key)
    except UNREADABLE as error:
        raise ValueError(" ".join(str(error).split())) from error


def write_times(path: Path, machine: str, key: str, times: Mapping[str, Any]) -> None:
    """Add what was measured to the file, which always holds the old content or the new; one of others is replaced.

    Raises:
        SlimrankError: if the place can't be written.
    """
    known: dict[str, dict[str, Any]] = {}
    with suppress(*UNREADABLE):
        known = _machines(path)
    machines = known | {machine: {**known.get(machine, {}), key: dict(times)}}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimrankError(f"The folder {path.parent} can't be made: {error.strerror or error}.") from error
    write_text(path, json.dumps({"version": VERSION, "machines": machines}, indent=1) + "\n")


def _machines(path: Path) -> dict[str, dict[str, Any]]:
    """By machine and key, what was measured."""
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["version"] != VERSION:
        raise ValueError(f"its version is {content['version']!r} instead of {VERSION}")
    return {str(machine): dict(times) for machine, times in content["machines"].items()}
