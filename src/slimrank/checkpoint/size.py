"""The size of a safetensors file, from its tensors' names, shapes and dtypes alone."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

NAMES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Spec:
    """A tensor's shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """What its numbers take."""
        return math.prod(self.shape) * self.dtype.itemsize


def file_bytes(tensors: Mapping[str, Spec]) -> int:
    """The bytes of the file that `safetensors.torch.save_file` writes of these tensors with transformers' metadata."""
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        spec = tensors[name]
        start, end = end, end + spec.bytes
        header[name] = {"dtype": NAMES[spec.dtype], "shape": list(spec.shape), "data_offsets": [start, end]}
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-length // 8) * 8 + end
