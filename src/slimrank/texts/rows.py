"""Rows of jsonl, parquet and hub datasets, each with the place an error can point to."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimrank.errors import SlimrankError, UsageError

Row = tuple[str, Any]

HUB = re.compile(r"hub:(?P<path>[^:]+):(?P<split>[^:\[\]]+(?:\[[^\]]*\])?)(?::(?P<field>.+))?")
EXTRA = "pip install slimrank[data]"


def read_utf8(path: Path) -> str:
    """The file as text, newlines translated to `\\n`.

    Raises UsageError when it is missing and SlimrankError when it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the path of a text that does") from None
    except UnicodeDecodeError as error:
        raise SlimrankError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from None
    except OSError as error:
        raise SlimrankError(f"{path} cannot be read: {error.strerror or error}") from error


def jsonl_rows(path: Path, field: str) -> Iterator[Row]:
    """What every non-blank line holds under `field`."""
    # not splitlines: JSON strings may hold U+2028 and its like
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            yield f"line {number}", _field(_parse(line, path, number), field, path, number)


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SlimrankError(f"{path} line {number} is not JSON ({error}): mend or remove the line") from None
    if not isinstance(row, dict):
        raise SlimrankError(
            f"{path} line {number} is not a JSON object: every line must hold one with the text's field"
        )
    return row


def _field(row: dict[str, Any], field: str, path: Path, number: int) -> Any:
    if field not in row:
        raise _unknown_field(f"{path} line {number}", field, list(row), f"{path}:FIELD")
    return row[field]


def parquet_rows(path: Path, column: str) -> Iterator[Row]:
    """The values of one column."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise SlimrankError(f"Reading {path} needs pyarrow: {EXTRA}") from error
    if not path.exists():
        raise UsageError(f"{path} does not exist: give the path of a text that does")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            values = file.read(columns=[column]).column(column).to_pylist() if column in names else None
    except (OSError, ValueError) as error:
        raise SlimrankError(f"{path} cannot be read as parquet: {_one_line(error)}") from error
    if values is None:
        raise _unknown_field(str(path), column, names, f"{path}:COLUMN")
    return _numbered(values)


def hub_rows(spec: str, field: str) -> Iterator[Row]:
    """The values of one column of `hub:name/config:split[:field]`; `field` is used where the spec names none."""
    match = HUB.fullmatch(spec)
    if match is None:
        raise UsageError(f"{spec} is not a hub dataset: write hub:NAME/CONFIG:SPLIT or hub:NAME:SPLIT")
    field = match["field"] or field
    dataset = _load(spec, match["path"], match["split"])
    if field not in dataset.column_names:
        raise _unknown_field(spec, field, dataset.column_names, f"hub:{match['path']}:{match['split']}:FIELD")
    return _numbered(dataset[field])


def _load(spec: str, path: str, split: str) -> Any:
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise SlimrankError(f"Reading {spec} needs the datasets library: {EXTRA}") from error
    missing: Exception | None = None
    for name, config in _hub_names(spec, path):
        try:
            return load_dataset(name, config, split=split)
        except (FileNotFoundError, ConnectionError) as error:
            missing = missing or error
        except Exception as error:  # the library raises errors of many unrelated types
            raise SlimrankError(f"{spec} cannot be loaded: {_one_line(error)}") from error
    raise SlimrankError(f"{spec} cannot be loaded: {_one_line(missing)}") from missing


def _hub_names(spec: str, path: str) -> list[tuple[str, str | None]]:
    """The (name, config) pairs that a path can mean: `a/b` is owner/name or, failing that, name/config."""
    match path.split("/"):
        case [name]:
            return [(name, None)]
        case [first, second]:
            return [(path, None), (first, second)]
        case [owner, name, config]:
            return [(f"{owner}/{name}", config)]
    raise UsageError(f"{spec} is not a hub dataset: its path has more than owner, name and configuration")


def _numbered(values: Any) -> Iterator[Row]:
    return ((f"row {number}", value) for number, value in enumerate(values, 1))


def _unknown_field(where: str, field: str, names: list[str], spelling: str) -> UsageError:
    return UsageError(f"{where} has no field {field!r}: choose one of {', '.join(names) or '(none)'} as {spelling}")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
