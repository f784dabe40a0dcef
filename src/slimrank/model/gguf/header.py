"""What a GGUF file says of itself, and whether all of it is there; none of its tensors is read.

The layout (version 2 and 3, little-endian): magic, version, numbers of tensors and of entries; the entries, key, type
and value; the tensors' names, dimensions, types and places; padding; the tensors.
"""

import mmap
import re
import struct
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from slimrank.errors import SlimrankError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
SPLIT = "split.count"
PART = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)
TOKENS = "tokenizer.ggml.tokens"


@dataclass(frozen=True)
class Entry:
    """An entry's value: `items` of one kind (see SCALARS), each a string's bytes or a number; listed: as an array."""

    kind: int
    items: Any
    listed: bool

    @property
    def value(self) -> Any:
        """A single value, strings decoded."""
        return self.items[0].decode() if self.kind == STRING else self.items[0]


@dataclass(frozen=True)
class Placed:
    """A tensor: shape as torch has it, its type's number, first byte in the file and bytes."""

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """The entries by key and the tensors in the file's order."""

    entries: dict[str, Entry]
    tensors: tuple[Placed, ...]

    @property
    def architecture(self) -> str:
        """As llama.cpp names it."""
        return str(self.entries["general.architecture"].value)

    @property
    def types(self) -> list[str]:
        """Of the matrices, such as Q4_1, the one that holds the most numbers first."""
        from gguf import GGMLQuantizationType

        counts: Counter[int] = Counter()
        for tensor in self.tensors:
            if len(tensor.shape) > 1:
                counts[tensor.kind] += prod(tensor.shape)
        return [GGMLQuantizationType(kind).name for kind, _ in counts.most_common()]


class Damaged(ValueError):
    """The file says what cannot be; the message goes on from the file's name."""


class _Cursor:
    """Reads on from a place in the file; raises an EOFError where it ends before that."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> int:
        """Where the next `size` bytes begin."""
        start, self.at = self.at, self.at + size
        if self.at > len(self.data):
            raise EOFError
        return start

    def numbers(self, code: str, count: int = 1) -> tuple[Any, ...]:
        """The next numbers of one struct code."""
        return struct.unpack_from(f"<{count}{code}", self.data, self.take(count * struct.calcsize(f"<{code}")))

    def string(self) -> bytes:
        """The next string, its length before it."""
        start = self.take(self.numbers("Q")[0])
        return self.data[start : self.at]

    def entry(self, listed: bool = False) -> Entry:
        """The next value with its type before it."""
        (kind,) = self.numbers("I")
        if kind == ARRAY and not listed:
            return self.entry(listed=True)
        count = self.numbers("Q")[0] if listed else 1
        if kind == STRING:
            return Entry(kind, [self.string() for _ in range(count)], listed)
        if kind not in SCALARS:
            raise Damaged(f"holds an entry of the unknown type {kind}")
        start = self.take(count * struct.calcsize(f"<{SCALARS[kind]}"))
        return Entry(kind, np.frombuffer(self.data[start : self.at], dtype=f"<{SCALARS[kind]}"), listed)


def read_header(path: Path) -> Header:
    """The header of a GGUF file that is whole and holds a tokenizer beside the model.

    Raises:
        SlimrankError: if the file is missing, no GGUF, cut short, damaged, one of several parts, or has no tokenizer.
    """
    try:
        with path.open("rb") as file:
            _require_one_part(path, int(named[1]) if (named := PART.search(path.name)) else 1)
            if file.read(len(MAGIC)) != MAGIC:
                raise SlimrankError(f"MODEL {path} is not a GGUF file: its first four bytes are not `GGUF`.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                header = _parsed(_Cursor(data))
                _require_whole(path, header, len(data))
    except OSError as error:
        raise SlimrankError(f"MODEL {path} can't be read ({error.strerror}): name a .gguf file.") from error
    except EOFError as error:
        raise SlimrankError(f"MODEL {path} is cut short inside its header: fetch the file again.") from error
    except Damaged as error:
        raise SlimrankError(f"MODEL {path} {error}: fetch the file again.") from error
    except (ValueError, LookupError, TypeError) as error:
        raise SlimrankError(f"MODEL {path} is damaged inside its header ({error}): fetch the file again.") from error
    return header


def _parsed(cursor: _Cursor) -> Header:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    cursor.take(len(MAGIC))
    (version,) = cursor.numbers("I")
    if version not in VERSIONS:
        raise Damaged(f"is of the GGUF version {version}, which is not one of {', '.join(map(str, VERSIONS))}")
    tensors, count = cursor.numbers("Q", 2)
    entries = {}
    for _ in range(count):
        key = cursor.string().decode()
        entries[key] = cursor.entry()
    listed = []
    for _ in range(tensors):
        name = cursor.string().decode()
        shape = cursor.numbers("Q", cursor.numbers("I")[0])[::-1]
        listed.append((name, shape, *cursor.numbers("I"), *cursor.numbers("Q")))
    alignment = int(entries["general.alignment"].value) if "general.alignment" in entries else 32
    start = -(-cursor.at // max(alignment, 1)) * alignment
    placed = []
    for name, shape, kind, offset in listed:
        block, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        if not shape or shape[-1] % block:
            raise Damaged(f"says that {name} is of shape {list(shape)}, whose rows are no blocks of {block}")
        placed.append(Placed(name, shape, kind, start + offset, prod(shape) // block * size))
    return Header(entries, tuple(placed))


def _require_whole(path: Path, header: Header, size: int) -> None:
    """Raise a SlimrankError where the file is not one whole model with its tokenizer."""
    for key in ("general.architecture", TOKENS):
        if key not in header.entries or not len(header.entries[key].items):
            what = "tokenizer" if key == TOKENS else "architecture"
            raise SlimrankError(f"MODEL {path} has no {what} ({key}) in it: give the Hugging Face directory instead.")
    if SPLIT in header.entries:
        _require_one_part(path, int(header.entries[SPLIT].value))
    for tensor in header.tensors:
        if tensor.start + tensor.size > size:
            raise SlimrankError(
                f"MODEL {path} is cut short: it ends at byte {size:,}, and its tensor {tensor.name} at "
                f"{tensor.start + tensor.size:,}: fetch the file again."
            )


def _require_one_part(path: Path, parts: int) -> None:
    if parts > 1:
        raise SlimrankError(f"MODEL {path} is one of {parts} parts: join them first, by `llama-gguf-split --merge`.")
