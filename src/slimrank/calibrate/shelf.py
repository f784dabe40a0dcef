"""Moments saved as one piece for each block, and loaded when they are read."""

from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from slimrank.calibrate.moments import BlockMoments, InputMoments, Moments, OutputMoments
from slimrank.numerics.gram_sum import GramSum
from slimrank.store.pieces import Pieces

M = TypeVar("M")
KINDS: dict[str, Any] = {"inputs": InputMoments, "outputs": OutputMoments, "blocks": BlockMoments}


class Shelf(Mapping[Any, M], Generic[M]):
    """A mapping from name to moments of one kind, loaded from their piece at every access."""

    def __init__(self, pieces: Pieces, kind: str, device: torch.device) -> None:
        self._pieces, self._kind, self._device = pieces, kind, device
        self._where: dict[Any, str] = {}

    def note(self, name: Any, piece: str) -> None:
        """Record that `piece` holds the moments of `name`."""
        self._where[name] = piece

    def forget(self, piece: str) -> None:
        """Remove the names whose moments are in `piece`."""
        self._where = {name: where for name, where in self._where.items() if where != piece}

    def __getitem__(self, name: Any) -> M:
        tensors, facts = self._pieces.load(self._where[name])
        rest = dict(facts[self._kind][str(name)])
        prefix = f"{self._kind}/{name}/"
        own = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        packed, width = own.pop("packed", torch.empty(0)), rest.pop("width")
        rest |= {key: tensor.to(self._device) for key, tensor in own.items()}
        moments: M = KINDS[self._kind](GramSum(packed, width, self._device), **rest)
        return moments

    def __iter__(self) -> Iterator[Any]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def on_shelves(pieces: Pieces, device: torch.device) -> Moments:
    """Empty Moments whose entries are loaded from `pieces` (see put_on_shelf)."""
    inputs: Shelf = Shelf(pieces, "inputs", device)
    return Moments(inputs, {}, Shelf(pieces, "outputs", device), Shelf(pieces, "blocks", device))


def shelve(moments: Moments, pieces: Pieces, key: str) -> None:
    """Save one block's moments as the piece `key`, the Grams packed and in float32."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"leader": moments.leader, **{kind: {} for kind in KINDS}}
    for kind in KINDS:
        for name, entry in getattr(moments, kind).items():
            values = dict(vars(entry))
            sums = values.pop("sums")
            tensors[f"{kind}/{name}/packed"] = sums.packed.float().cpu()
            tensors |= {f"{kind}/{name}/{k}": v.cpu() for k, v in values.items() if isinstance(v, Tensor)}
            scalars = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
            facts[kind][str(name)] = {"width": sums.width, **scalars}
    pieces.save(key, tensors, facts, later=True)


def put_on_shelf(moments: Moments, pieces: Pieces, key: str) -> None:
    """Enter the moments of the piece `key` into `moments`, which comes from on_shelves."""
    _, facts = pieces.load(key)
    moments.leader.update(facts["leader"])
    for kind in KINDS:
        for name in facts[kind]:
            getattr(moments, kind).note(int(name) if kind == "blocks" else name, key)


def forget_input_grams(pieces: Pieces, key: str) -> None:
    """Save the piece `key` again without the Grams of its inputs, most of its size."""
    tensors, facts = pieces.load(key)
    kept = {name: t for name, t in tensors.items() if not (name.startswith("inputs/") and name.endswith("/packed"))}
    if len(kept) < len(tensors):
        pieces.save(key, kept, facts)
