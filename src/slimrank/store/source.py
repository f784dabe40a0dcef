"""The tensors of a checkpoint directory, memory-mapped from its safetensors files."""

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def weight_files(directory: Path) -> list[Path]:
    """The checkpoint's weight files: the shards of its index, or else model.safetensors."""
    if not (directory / INDEX).is_file():
        return [directory / SINGLE]
    shards = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
    return sorted({directory / Path(shard).name for shard in shards})


class Source:
    """Names, shapes and tensors of a checkpoint directory, sharded or in one file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files: dict[Path, Any] = {}
        self._places = {key: path for path in weight_files(directory) for key in self._open(path).keys()}  # noqa: SIM118 (no mapping)

    def __contains__(self, key: str) -> bool:
        return key in self._places

    def shape(self, key: str) -> tuple[int, ...]:
        """The tensor's shape, read from the file's header."""
        return tuple(self._open(self._places[key]).get_slice(key).get_shape())

    def get(self, key: str) -> Tensor:
        """The tensor on the CPU in the file's dtype, memory-mapped."""
        tensor: Tensor = self._open(self._places[key]).get_tensor(key)
        return tensor

    def _open(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = safe_open(path, "pt").__enter__()
        return self._files[path]
