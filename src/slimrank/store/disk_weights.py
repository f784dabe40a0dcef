"""Weights that stay in the checkpoint's files and are loaded a part (a block) at a time."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.store.pieces import Pieces
from slimrank.store.slot import Slot
from slimrank.store.source import Source
from slimrank.store.stored import as_stored
from slimrank.store.weights import Part, Weights, place, sample

PIECE = 2**22  # elements to check at a time, since isfinite allocates


@dataclass(frozen=True)
class Kept:
    """A part as a step left it: its piece, and by tensor name the module and attribute it belongs to."""

    pieces: Pieces
    key: str
    places: dict[str, tuple[nn.Module, str]]

    def load(self) -> dict[str, Tensor]:
        """Load the tensors by name."""
        return self.pieces.load(self.key)[0]


class DiskWeights(Weights):
    """Holds the most recently used parts in memory, within `room` bytes but at least the one in use.

    The next part is read ahead if there is room for it. Changes to a part are lost when it is released, unless they are
    saved by `keep`.
    """

    def __init__(
        self,
        model: nn.Module,
        prefix: str,
        count: int,
        *,
        source: Source,
        slots: list[Slot],
        dtype: torch.dtype,
        device: torch.device,
        room: int,
    ) -> None:
        super().__init__(model, prefix, count)
        self.source, self.room = source, room
        self._dtype, self._device = dtype, device
        self._slots: dict[Part, list[Slot]] = {part: [] for part in self.parts}
        for slot in slots:
            self._slots[self.part_of(slot.names[0])].append(slot)
        self._kept: dict[Part, Kept] = {}
        self._here: dict[Part, list[tuple[nn.Module, str, int]]] = {}  # least recently used first
        self._held: Counter[Part] = Counter()
        self._swapped: dict[Part, list[tuple[nn.Module, str, nn.Parameter | None]]] | None = None
        self._checked: set[Part] = set()
        self._reader = ThreadPoolExecutor(1, "slimrank-reader")
        self._ahead: tuple[Part, Future] | None = None
        self._last = 0

    @property
    def device(self) -> torch.device:
        """The device that the model computes on."""
        return self._device

    @contextmanager
    def hold(self, part: Part) -> Iterator[None]:
        """Inside, the part is in memory; afterwards until its room is needed."""
        self._held[part] += 1
        try:
            self._fetch(part)
            yield
        finally:
            self._held[part] -= 1
            # embeddings and head are large and rarely used
            if part is None and not self._held[None] and len(self._here) > 1 and self.held > self.room:
                self._release(None)

    @contextmanager
    def dense_vectors(self) -> Iterator[None]:
        """Inside, norms and biases are the dense model's, without the refiners' changes."""
        if self._swapped is not None:
            yield
            return
        self._swapped = {}
        for part in self._here:
            self._swap_vectors(part)
        try:
            yield
        finally:
            for ours in self._swapped.values():
                for module, leaf, parameter in ours:
                    module._parameters[leaf] = parameter
            self._swapped = None

    def dense_samples(self, count: int) -> Iterator[tuple[str, torch.Size, Tensor]]:
        """As Weights.dense_samples, read from the files."""
        for slots in self._slots.values():
            for slot in slots:
                tensor = slot.read(self.source)
                yield slot.names[0], tensor.shape, self._cast(sample(tensor, count)).float()

    def keep(self, part: Part, pieces: Pieces, key: str, facts: dict[str, Any] | None = None) -> None:
        """Save the part as it is now; from then on the saved one is loaded."""
        super().keep(part, pieces, key, facts)
        self._note(part, pieces, key)
        self._release(part)

    def restore(self, part: Part, pieces: Pieces, key: str) -> dict[str, Any]:
        """Load the part as it was saved under `key`; returns its facts."""
        self._release(part)
        facts = super().restore(part, pieces, key)
        self._note(part, pieces, key)
        self._release(part)
        return facts

    def forget(self) -> None:
        """Release all parts and discard what was kept, so that the dense weights are loaded next."""
        for part in list(self._here):
            self._release(part)
        self._kept.clear()

    def stored(self, pieces: Pieces, dtype: torch.dtype) -> dict[str, Tensor]:
        """The model's tensors in `dtype`, backed by files; tensors of another dtype are cast and saved as pieces."""
        keys = {name: slot for slots in self._slots.values() for slot in slots for name in slot.names}
        names: dict[Part, list[str]] = {part: [] for part in self.parts}
        live = self.model.state_dict()
        for name in live:
            names[self.part_of(name)].append(name)
        state: dict[str, Tensor] = {}
        for part in self.parts:
            state |= self._stored_part(part, names[part], keys, live, pieces, dtype)
        return {name: state[name] for name in live}

    def _stored_part(
        self,
        part: Part,
        names: list[str],
        keys: dict[str, Slot],
        live: dict[str, Tensor],
        pieces: Pieces,
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
        kept = self._kept[part].load() if part in self._kept else {}
        read = {keys[name]: keys[name].read(self.source) for name in names if name not in kept and name in keys}
        here = {name: read[keys[name]] if name in keys else live[name] for name in names if name not in kept}
        found = here | kept
        made = {
            name: as_stored(name, t, keys[name].read(self.source) if name in keys else None, self._dtype, dtype)
            for name, t in kept.items()
        }
        cast = {name: t for name, t in made.items() if t is not kept[name]}
        piece = f"stored/{'outside' if part is None else part}"
        if cast and piece not in pieces:
            pieces.save(piece, cast)
        return found | made | (pieces.load(piece)[0] if cast else {})

    def _fetch(self, part: Part) -> None:
        if part in self._here:
            self._here[part] = self._here.pop(part)
            return
        slots = self._slots[part]
        wanted = sum(slot.numel(self.source) for slot in slots) * self._dtype.itemsize
        for old in list(self._here):
            if not self._held[old] and self.held + wanted > self.room:
                self._release(old)
        tensors = self._take_ahead(part)
        self._check(part, slots, tensors)
        here = []
        for slot, tensor in zip(slots, tensors, strict=True):
            parameter = nn.Parameter(tensor.to(self._device, non_blocking=True), requires_grad=False)
            for number, (module, leaf) in enumerate(slot.places):
                module._parameters[leaf] = parameter
                here.append((module, leaf, 0 if number else tensor.nbytes))  # tied ones are one tensor
        self._here[part] = here
        if part in self._kept:
            kept = self._kept[part].load()
            for name, (module, leaf) in self._kept[part].places.items():
                place(module, leaf, kept[name].to(self._device))
                here.append((module, leaf, kept[name].nbytes))
        if self._swapped is not None:
            self._swap_vectors(part)
        self._read_ahead(part, wanted)

    def _swap_vectors(self, part: Part) -> None:
        """Replace the part's vectors in memory by the source's, until dense_vectors ends."""
        assert self._swapped is not None
        ours = self._swapped[part] = []
        for slot in self._slots[part]:
            held = [(module, leaf, module._parameters[leaf]) for module, leaf in slot.places]
            if any(parameter is not None and parameter.ndim > 1 for *_, parameter in held):
                continue
            dense = nn.Parameter(self._cast(slot.read(self.source)).to(self._device), requires_grad=False)
            ours += held
            for module, leaf, _ in held:
                module._parameters[leaf] = dense

    def _note(self, part: Part, pieces: Pieces, key: str) -> None:
        """Record the modules of the tensors in a part's piece, which are all in memory."""
        places = {}
        for name, tensor in pieces.load(key)[0].items():
            owner, _, leaf = name.rpartition(".")
            places[name] = self.model.get_submodule(owner), leaf
            self._here.setdefault(part, []).append((*places[name], tensor.nbytes))
        self._kept[part] = Kept(pieces, key, places)

    def _release(self, part: Part) -> None:
        if self._swapped is not None:
            self._swapped.pop(part, None)
        away: dict[nn.Parameter, nn.Parameter] = {}  # tied parameters stay tied
        for module, leaf, _ in self._here.pop(part, ()):
            held = module._parameters.get(leaf)
            if held is not None:
                if held not in away:
                    away[held] = nn.Parameter(held.to("meta"), requires_grad=False)
                module._parameters[leaf] = away[held]

    @property
    def held(self) -> int:
        """Bytes of the parts in memory."""
        return sum(size for places in self._here.values() for _, _, size in places)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._dtype) if tensor.is_floating_point() else tensor

    def _read(self, part: Part) -> list[Tensor]:
        tensors = [self._cast(slot.read(self.source)) for slot in self._slots[part]]
        # refiners change vectors in place, which must not change the mapped file
        tensors = [tensor.clone() if tensor.ndim == 1 else tensor for tensor in tensors]
        return [t.pin_memory() for t in tensors] if self._device.type == "cuda" else tensors

    def _take_ahead(self, part: Part) -> list[Tensor]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            tensors = ahead[1].result()
            if ahead[0] == part:
                return tensors
        return self._read(part)

    def _read_ahead(self, part: Part, size: int) -> None:
        if part is None:
            return
        step, self._last = (1 if part >= self._last else -1), part
        following = part + step
        if following in self._slots and following not in self._here and self.held + size <= self.room:
            self._ahead = following, self._reader.submit(self._read, following)

    def _check(self, part: Part, slots: list[Slot], tensors: list[Tensor]) -> None:
        if part in self._checked:
            return
        for slot, tensor in zip(slots, tensors, strict=True):
            if not all(torch.isfinite(chunk).all() for chunk in tensor.flatten().split(PIECE)):
                raise SlimrankError(
                    f"{slot.names[0]} holds NaN or Inf: the model cannot be compressed, get intact weights."
                )
        self._checked.add(part)
