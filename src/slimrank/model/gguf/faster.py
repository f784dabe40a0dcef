"""The gguf library's answers to transformers, given faster.

transformers has the header of a GGUF file read three times, by numpy slices of a few bytes, it has the table of tensor
names made anew for every module of the model, and the library dequantises sixteen rows at a time. Inside `faster` the
header is read already, the table is made once, and rows go in larger groups, on all cores. Should transformers ask for
something else one day, it gets that as slowly as without.
"""

import functools
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType
from gguf.gguf_reader import ReaderField
from transformers import modeling_gguf_pytorch_utils

from slimrank.model.gguf.header import ARRAY, STRING, TOKENS, Entry, Header, Placed

GROUP = 2**17
"""Numbers dequantised at a time, whose intermediate results stay in a core's cache."""
PLAIN = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}

_alone = threading.Lock()
_usual_reader, _usual_dequantize = gguf.GGUFReader, gguf.dequantize
_name_map = functools.lru_cache(8)(gguf.get_tensor_name_map)


@contextmanager
def faster(path: Path, header: Header, *, vocabulary: bool) -> Iterator[None]:
    """Inside, gguf answers from `header` where it is asked for `path`.

    vocabulary: False where the number of tokens matters, and neither their spelling nor merges.
    """
    reader = Reader(path, header, vocabulary)

    def read(asked: Any, *args: Any, **kwargs: Any) -> Any:
        return reader if Path(asked).resolve() == path.resolve() else _usual_reader(asked, *args, **kwargs)

    with _alone, ThreadPoolExecutor(torch.get_num_threads()) as threads:
        answers = {
            (gguf, "GGUFReader"): read,
            (gguf, "get_tensor_name_map"): _name_map,
            (gguf, "dequantize"): functools.partial(dequantize, threads=threads),
            (modeling_gguf_pytorch_utils, "tqdm"): lambda items, **_: items,  # no bar, which no setting hides
        }
        usual = {place: getattr(*place) for place in answers}
        try:
            for (module, name), answer in answers.items():
                setattr(module, name, answer)
            yield
        finally:
            for (module, name), answer in usual.items():
                setattr(module, name, answer)


class Reader:
    """What transformers uses of a gguf.GGUFReader."""

    def __init__(self, path: Path, header: Header, vocabulary: bool) -> None:
        entries = header.entries if vocabulary else _counted(header.entries)
        self.fields = {key: _field(key, entry) for key, entry in entries.items()}
        data = np.memmap(path, mode="r")
        self.tensors = [Tensor.of(one, data) for one in header.tensors]


@dataclass(frozen=True)
class Tensor:
    """What transformers uses of a gguf.ReaderTensor; data: as the library's dequantize takes it."""

    name: str
    tensor_type: GGMLQuantizationType
    data: np.ndarray

    @classmethod
    def of(cls, placed: Placed, file: np.ndarray) -> "Tensor":
        """The tensor, its bytes not read yet."""
        kind = GGMLQuantizationType(placed.kind)
        data = file[placed.start : placed.start + placed.size]
        if kind.name in PLAIN:
            return cls(placed.name, kind, data.view(PLAIN[kind.name]).reshape(placed.shape))
        return cls(placed.name, kind, data.reshape(*placed.shape[:-1], -1))


def dequantize(data: np.ndarray, kind: GGMLQuantizationType, threads: Executor) -> np.ndarray:
    """As gguf.dequantize: (..., bytes of a row) -> (..., n) float32."""
    if kind.name in PLAIN:
        return _usual_dequantize(data, kind)
    block, size = GGML_QUANT_SIZES[kind]
    blocks = data.reshape(-1, size)
    step = max(GROUP // block, 1)
    made = np.empty((len(blocks), block), dtype=np.float32)

    def group(start: int) -> None:
        some = blocks[start : start + step]
        made[start : start + step] = _usual_dequantize(some.reshape(1, -1), kind).reshape(-1, block)

    list(threads.map(group, range(0, len(blocks), step)))
    return made.reshape(*data.shape[:-1], -1)


def _field(key: str, entry: Entry) -> ReaderField:
    """The entry as the library gives it: one part an item."""
    kind = GGUFValueType(entry.kind)
    parts = [*entry.items] if entry.kind == STRING else [*entry.items.reshape(-1, 1)]
    types = [GGUFValueType(ARRAY), kind] if entry.listed else [kind]
    return ReaderField(0, key, parts, list(range(len(parts))), types)


def _counted(entries: dict[str, Entry]) -> dict[str, Entry]:
    """The entries without the tokenizer's lists; as many tokens, all of them empty."""
    kept = {key: one for key, one in entries.items() if not (one.listed and key.startswith("tokenizer."))}
    return kept | {TOKENS: Entry(STRING, [b""] * len(entries[TOKENS].items), True)}
