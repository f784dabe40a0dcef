"""The bytes of a checkpoint's weights, from what every linear will be stored as."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimrank.checkpoint.size import Spec, file_bytes
from slimrank.factorize import Factorizer
from slimrank.factorize.rounded import entry_of
from slimrank.forms import form_of
from slimrank.forms.joint import Joint
from slimrank.model.compressible import Compressible
from slimrank.model.units import Unit
from slimrank.rounding.grid import Grid

Specs = dict[str, Spec]


@dataclass(frozen=True)
class Ledger:
    """Counts what a checkpoint of this model takes; stored: the dtype that its floats are written in."""

    model: Compressible
    form: Factorizer
    stored: torch.dtype

    def rest(self) -> Specs:
        """The tensors outside the linears, tied ones once."""
        model = self.model.decoder.model
        inside = {id(tensor) for linear in self.model.linears.values() for tensor in linear.parameters()}
        parameters = {name: tensor for name, tensor in model.named_parameters() if id(tensor) not in inside}
        saved = model.state_dict().keys()
        buffers = {name: tensor for name, tensor in model.named_buffers() if name in saved}
        return {name: self._spec(tensor) for name, tensor in {**parameters, **buffers}.items()}

    def of(self, unit: Unit, rank: int | None, grid: Grid | None) -> Specs:
        """The tensors of a unit's linears, biases included."""
        dense = {name: self.model.linears[name] for name in unit.names}
        if rank is None and grid is None:
            return {
                f"{name}.{key}": self._spec(tensor)
                for name, module in dense.items()
                for key, tensor in module.named_parameters()
            }
        if rank == 0:
            entries: list[dict[str, Any]] = [{"form": "low_rank", "rank": 0} for _ in dense]
        elif grid is None:
            entries = shared(self.form.entries(unit.shapes, rank or 1), unit)
        else:
            entries = [entry_of(grid, rank)]
        specs: Specs = {}
        for (name, module), entry in zip(dense.items(), entries, strict=True):
            shell = form_of(name, entry, 0).shell(module, entry, "meta", self.stored)
            specs |= {f"{name}.{key}": Spec(tuple(t.shape), t.dtype) for key, t in shell.state_dict().items()}
        return specs

    def total(self, ranks: Mapping[Unit, int | None], grids: Mapping[Unit, Grid]) -> int:
        """The bytes of the whole file."""
        specs = self.rest()
        for unit, rank in ranks.items():
            specs |= self.of(unit, rank, grids.get(unit))
        return file_bytes(specs)

    def numbers(self) -> int:
        """How many numbers the dense model has, tied ones once."""
        return sum(tensor.numel() for tensor in self.model.decoder.model.parameters())

    def _spec(self, tensor: Tensor) -> Spec:
        computed = next(iter(self.model.linears.values())).weight.dtype
        return Spec(tuple(tensor.shape), self.stored if tensor.dtype == computed else tensor.dtype)


def shared(entries: list[dict[str, Any]], unit: Unit) -> list[dict[str, Any]]:
    """The entries of a unit; members that share pivots have them dealt out, since the plan does not say how."""
    if entries[0]["form"] != Joint.form:
        return entries
    left, first, dealt = entries[0]["rank"], 0, []
    for entry, (rows, _) in zip(entries, unit.shapes, strict=True):
        own = min(left, rows)
        dealt.append({**entry, "own": own, "first": first})
        left, first = left - own, first + own
    return dealt


def payload(specs: Specs) -> int:
    """Bytes of the tensors themselves."""
    return sum(spec.bytes for spec in specs.values())
