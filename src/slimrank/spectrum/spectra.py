"""Spectra: what every rank of every unit costs in a metric, and the best cut at any rank."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from slimrank.calibrate.evidence import Evidence
from slimrank.errors import SlimrankError
from slimrank.forms.linear import weight_of
from slimrank.metric import Metric
from slimrank.model.compressible import Compressible
from slimrank.model.units import Unit, stacked
from slimrank.numerics.grams import Blocks, Grams, Left
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.decomposition import Decomposition, Route, decompose_weight_again
from slimrank.store.run import UNLIMITED

T = TypeVar("T")


class Decompositions(dict[Unit, Decomposition]):
    """Decompositions that are held, as many as fit into `room` bytes."""

    def __init__(self, room: int = UNLIMITED) -> None:
        self.room = room

    def hold(self, unit: Unit, made: Decomposition) -> None:
        """Keep a unit's decomposition, if there is room for it."""
        if made.nbytes <= self.room - sum(one.nbytes for one in self.values()):
            self[unit] = made


@dataclass(frozen=True)
class Spectra:
    """The curves of all units of a model in one metric.

    curves: of every linear that calibration reached, in the model's order; stacks: of the units of several linears that
    may be factorised as one; held: decompositions that need not be computed again.
    """

    model: Compressible
    evidence: Evidence
    metric: Metric
    route: Route = "projector"
    curves: Mapping[Unit, Curve] = field(default_factory=dict)
    stacks: Mapping[Unit, Curve] = field(default_factory=dict)
    held: Decompositions = field(default_factory=Decompositions)

    def curve(self, unit: Unit) -> Curve:
        """What every rank of a unit costs."""
        return self.curves[unit] if unit in self.curves else self.stacks[unit]

    def cut(self, unit: Unit, rank: int) -> tuple[Tensor, Tensor]:
        """The factors (m, rank) and (rank, n) of a unit's best approximation at this rank, float64."""
        return self.decomposition(unit, rank).cut(rank)

    def decomposition(self, unit: Unit, rank: int | None = None) -> Decomposition:
        """A unit's decomposition, to be cut to that rank at most; without a rank whole, and held where it fits."""
        if unit in self.held:
            return self.held[unit]
        known, weight = self.curve(unit), self.weight(unit)
        pair = None
        if known.basis is not None:
            pair = known.values.to(weight.device), known.basis.to(weight.device)
        made = decompose_weight_again(weight, self.grams(unit, known.choice), self.route, pair, rank)
        if rank is None:
            self.held.hold(unit, made)
        return made

    def weight(self, unit: Unit) -> Tensor:
        """The dense weights of a unit, stacked (m, n)."""
        weights = self.model.decoder.weights
        with weights.hold(unit.block):
            parts = [weight_of(self.model.linears[name]).detach() for name in unit.names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def grams(self, unit: Unit, choice: float | None = None) -> Grams:
        """The Grams by which a unit's error counts."""
        inputs = self.evidence.input_of(unit.leader)
        left = self.left(unit)
        return Grams(left, self._named(unit, lambda: self.metric.chosen(choice).right(inputs)))

    def held_out_grams(self, unit: Unit, choice: float | None = None) -> Grams | None:
        """The right one by which its error is measured on the held-out windows; None where no held-out token came."""
        held_out = self.evidence.held_out_of(unit.leader)
        if held_out is None:
            return None
        inputs = self.evidence.input_of(unit.leader)
        return Grams(right=self.metric.chosen(choice).held_out_right(inputs, held_out))

    def left(self, unit: Unit) -> Left:
        """The left Gram of a unit: of several linears one block each, made when it is asked for."""
        if not self.metric.needs.gradients:
            return None

        def make(index: int) -> Tensor:
            outputs = self.evidence.output_of(unit.names[index])
            left = self._named(unit, lambda: self.metric.left(outputs))
            assert left is not None, "a metric that needs gradients has a left Gram"
            return left

        return make(0) if len(unit.names) == 1 else Blocks(tuple(rows for rows, _ in unit.shapes), make)

    def choice(self, unit: Unit, keep: float) -> float | None:
        """What the metric settles for one linear by measuring; keep: the share of parameters that is to stay."""
        inputs, held_out = self.evidence.input_of(unit.leader), self.evidence.held_out_of(unit.leader)
        return self._named(unit, lambda: self.metric.choose(self.weight(unit), inputs, held_out, keep))

    @staticmethod
    def _named(unit: Unit, make: Callable[[], T]) -> T:
        """What `make` gives; its error names the unit."""
        try:
            return make()
        except SlimrankError as error:
            raise SlimrankError(f"At {unit.key}: {error}.") from error


def stacks_of(model: Compressible, leader: Mapping[str, str]) -> list[Unit]:
    """The linears of one module that share an input, as one unit, where that is taller than wide.

    leader: of every linear, in the order in which they ran, the first linear that saw the same input.
    """
    found: dict[tuple[str, str], list[Unit]] = {}
    for name, first in leader.items():
        found.setdefault((name.rpartition(".")[0], first), []).append(model.units[name])
    return [unit for units in found.values() if len(units) > 1 and (unit := stacked(units)).tall]


def reached(model: Compressible, leader: Iterable[str]) -> list[Unit]:
    """The linears that calibration tokens reached, in the model's order."""
    seen = set(leader)
    return [unit for name, unit in model.units.items() if name in seen]
