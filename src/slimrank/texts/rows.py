"""Rows of jsonl, json, csv, parquet and hub datasets, each with the place an error can point to."""

import csv
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slimrank.errors import SlimrankError, UsageError

Row = tuple[str, Any]

HUB = re.compile(r"hub:(?P<path>[^:]+):(?P<split>[^:\[\]]+(?:\[[^\]]*\])?)(?::(?P<field>.+))?")
EXTRA = "pip install slimrank[data]"
COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\xfd7zXZ": "xz",
    b"BZh": "bzip2",
}  # by a file's first bytes


def read_utf8(path: Path) -> str:
    """The file as text, newlines translated to `\\n`.

    Raises UsageError when it is missing and SlimrankError when it cannot be read or is not UTF-8.
    """
    try:
        content = path.read_bytes()
        packed = next((kind for start, kind in COMPRESSED.items() if content.startswith(start)), None)
        if packed:
            raise SlimrankError(f"{path} is compressed with {packed}: decompress it first")
        return io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: give the path of a text that does") from None
    except UnicodeDecodeError as error:
        raise SlimrankError(f"{path} is not UTF-8 text (byte {error.start}): convert it first") from None
    except OSError as error:
        raise SlimrankError(f"{path} cannot be read: {error.strerror or error}") from error


def json_rows(path: Path, field: str) -> Iterator[Row]:
    """The rows of a JSON array, of objects or of strings; of a file that holds an object a line, as jsonl_rows."""
    text = read_utf8(path)
    if not text.lstrip().startswith("["):
        yield from jsonl_rows(path, field)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SlimrankError(f"{path} is not JSON ({error}): fix it, or give a row a line as .jsonl") from None
    for place, row in _numbered(rows):
        if not isinstance(row, dict | str):
            raise SlimrankError(f"{path} {place} is neither a JSON object nor a string: fix or remove it")
        yield place, row if isinstance(row, str) else _field(row, field, path, place)


def csv_rows(path: Path, column: str) -> Iterator[Row]:
    """The values of one column of a .csv, or .tsv, file whose first line names the columns."""
    csv.field_size_limit(sys.maxsize)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(read_utf8(path), newline=""), delimiter=delimiter, strict=True)
    try:
        if column not in (names := list(rows.fieldnames or ())):
            raise _unknown_field(str(path), column, names, f"{path}:COLUMN")
        yield from _numbered(row[column] for row in rows)
    except csv.Error as error:
        raise SlimrankError(f"{path} after line {rows.line_num} is not CSV ({error}): fix or remove it") from None


def jsonl_rows(path: Path, field: str) -> Iterator[Row]:
    """What every non-blank line holds under `field`."""
    # not splitlines: JSON strings may hold U+2028 and its like
    for number, line in enumerate(read_utf8(path).split("\n"), 1):
        if line.strip():
            yield f"line {number}", _field(_parse(line, path, number), field, path, f"line {number}")


def _parse(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise SlimrankError(f"{path} line {number} is not JSON ({error}): fix or remove the line") from None
    if not isinstance(row, dict):
        raise SlimrankError(
            f"{path} line {number} is not a JSON object: every line must hold one with the text's field"
        )
    return row


def _field(row: dict[str, Any], field: str, path: Path, place: str) -> Any:
    if field not in row:
        raise _unknown_field(f"{path} {place}", field, list(row), f"{path}:FIELD")
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
    dataset = _load(spec, match["path"], match["split"])
    return dataset_rows(dataset, match["field"] or field, spec, f"hub:{match['path']}:{match['split']}:FIELD")


def dataset_rows(dataset: Any, field: str, where: str, spelling: str) -> Iterator[Row]:
    """The values of one column of a datasets.Dataset; spelling: how to name another column."""
    if field not in dataset.column_names:
        raise _unknown_field(where, field, dataset.column_names, spelling)
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
