"""Whether a file can be written where an option says, asked before the work that it is for."""

from pathlib import Path

from slimrank.errors import UsageError


def check_file(option: str, file: Path | None) -> None:
    """Raise a UsageError where `file` is a folder or stands in none."""
    if file and file.is_dir():
        raise UsageError(f"{option} {file} is a folder: name a file.")
    if file and not file.parent.is_dir():
        raise UsageError(f"{option} {file}: the folder {file.parent} does not exist.")
