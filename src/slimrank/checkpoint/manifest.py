"""slimrank/checksums.json: the size and SHA-256 of every weight file."""

import json
from pathlib import Path

from slimrank.errors import SlimrankError
from slimrank.runtime.digests import sha256_of

MANIFEST = "slimrank/checksums.json"


def manifest(folder: Path) -> str:
    """The JSON that maps each safetensors file of `folder` to {"bytes", "sha256"}."""
    files = sorted(folder.glob("*.safetensors"))
    entries = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
    return json.dumps(entries, indent=2) + "\n"


def verify(folder: Path) -> list[str]:
    """The names of the weight files that are as they were written; none for a folder without checksums.

    Raises a SlimrankError that names the first file that is missing, truncated or changed.
    """
    if not (folder / MANIFEST).is_file():
        return []
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        expected = {name: (int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries.items()}
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SlimrankError(f"The file {folder / MANIFEST} is damaged ({error!r}); fetch it again.") from error
    for name, (size, digest) in expected.items():
        _verify_file(folder / name, size, digest)
    return list(expected)


def _verify_file(file: Path, size: int, digest: str) -> None:
    if not file.is_file():
        raise SlimrankError(f"The weight file {file} is missing; fetch the checkpoint again.")
    found = file.stat().st_size
    if found != size:
        raise SlimrankError(f"The weight file {file} has {found:,} bytes instead of {size:,}; fetch it again.")
    if sha256_of(file) != digest:
        raise SlimrankError(f"The weight file {file} was changed after it was written; fetch it again.")
