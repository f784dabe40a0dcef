"""SHA-256 digests of files, texts, JSON values and tensors, in hexadecimal digits."""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """The SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode()).hexdigest()


def sha256_of_json(value: Any) -> str:
    """The SHA-256 of a JSON value, independent of the order of its keys."""
    return sha256_of_text(json.dumps(value, sort_keys=True))


def sha256_of_tensor(tensor: Tensor) -> str:
    """The SHA-256 of the bytes of a CPU tensor."""
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()
