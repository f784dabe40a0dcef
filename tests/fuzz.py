"""Damaged inputs: mutations of JSON documents and of bytes, each from a seed."""

import copy
import json
import random
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 7, 2**31, 2**63, 10**30, 0.5, -2.5, 1e308, float("nan"), float("inf"), "", "x",
    "../../escaped", "/tmp/escaped", "\x00", "é\u2028", "a" * 3000, "__class__", "!!python/object:os.system", [], [[]],
    [1, 2], [None], {}, {"a": {}}, {"name": 1},
)  # fmt: skip


def places(document: Any, path: tuple = ()) -> list[tuple]:
    """Every place in a document."""
    inside = document.items() if isinstance(document, dict) else enumerate(document)
    found = [path]
    for key, value in inside:
        found += places(value, (*path, key)) if isinstance(value, dict | list) else [(*path, key)]
    return found


def damaged_document(document: Any, rng: random.Random) -> Any:
    """One to three values replaced, removed, moved or added."""
    document = copy.deepcopy(document)
    for _ in range(rng.choice((1, 1, 2, 3))):
        *parents, last = rng.choice(places(document)[1:] or [(0,)])
        owner = document
        for key in parents:
            owner = owner[key]
        action = rng.random()
        if action < 0.65:
            owner[last] = copy.deepcopy(rng.choice(NASTY))
        elif action < 0.8:
            del owner[last]
        elif action < 0.9 and isinstance(owner, dict):
            owner[rng.choice(("extra", "version", "name", "", *map(str, owner)))] = owner[last]
        else:
            owner[last] = copy.deepcopy(document)
        if not isinstance(document, dict | list) or not document:
            break
    return document


def damaged_bytes(content: bytes, rng: random.Random) -> bytes:
    """A piece cut out, overwritten, doubled or put in, or the rest cut off; mostly near the beginning."""
    start = int(len(content) * rng.random() ** 3)
    end = min(len(content), start + rng.choice((1, 1, 4, 100)))
    random_ones, twice = rng.randbytes(end - start), content[start:end] * 2
    new = rng.choice((b"", random_ones, twice, b"\xff", b"\x00" * 8, b"{", b"]", b'"', b"[" * 100_000))
    return content[:start] if rng.random() < 0.2 else content[:start] + new + content[end:]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A JSON file, damaged as a document or as bytes."""
    if rng.random() < 0.75:
        return json.dumps(damaged_document(json.loads(content), rng)).encode()
    return damaged_bytes(content, rng)


def damaged_safetensors(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is damaged as a document, with or without its right length, or as bytes."""
    size = int.from_bytes(content[:8], "little")
    header, data = content[8 : 8 + size], content[8 + size :]
    kind = rng.random()
    if kind < 0.6:
        header = json.dumps(damaged_document(json.loads(header), rng)).encode()
    elif kind < 0.8:
        return damaged_bytes(content, rng)
    else:
        size = rng.choice((0, size - 1, size + 1, 2**31, 2**63, rng.randrange(10**6)))
        return size.to_bytes(8, "little") + header + data
    return len(header).to_bytes(8, "little") + header + data
