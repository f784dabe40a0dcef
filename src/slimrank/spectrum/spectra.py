"""Spectra: every unit's loss at every rank in a metric, and its optimal factors at any rank."""

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
    """A cache of decompositions by unit, as many as fit into `room` bytes."""

    def __init__(self, room: int = UNLIMITED) -> None:
        self.room = room

    def hold(self, unit: Unit, decomposition: Decomposition) -> None:
        """Cache a unit's decomposition if there is room for it."""
        if decomposition.nbytes <= self.room - sum(held.nbytes for held in self.values()):
            self[unit] = decomposition


@dataclass(frozen=True)
class Spectra:
    """The curves of all units of a model in one metric.

    curves: of every linear that calibration reached, in the model's order; stacks: of the units of several linears that
    may be factorised together; held: cached decompositions.
    """

    model: Compressible
    evidence: Evidence
    metric: Metric
    route: Route = "projector"
    curves: Mapping[Unit, Curve] = field(default_factory=dict)
    stacks: Mapping[Unit, Curve] = field(default_factory=dict)
    held: Decompositions = field(default_factory=Decompositions)

    def curve(self, unit: Unit) -> Curve:
        """The curve of a unit of one linear or of several."""
        return self.curves[unit] if unit in self.curves else self.stacks[unit]

    def cut(self, unit: Unit, rank: int) -> tuple[Tensor, Tensor]:
        """The factors (m, rank) and (rank, n) of a unit's optimal approximation at a rank, float64."""
        return self.decomposition(unit, rank).cut(rank)

    def decomposition(self, unit: Unit, rank: int | None = None) -> Decomposition:
        """A unit's decomposition up to a rank; without a rank all of it, cached if it fits."""
        if unit in self.held:
            return self.held[unit]
        known, weight = self.curve(unit), self.weight(unit)
        pair = None
        if known.basis is not None:
            pair = known.values.to(weight.device), known.basis.to(weight.device)
        decomposition = decompose_weight_again(weight, self.grams(unit, known.choice), self.route, pair, rank)
        if rank is None:
            self.held.hold(unit, decomposition)
        return decomposition

    def weight(self, unit: Unit) -> Tensor:
        """The dense weights of a unit, stacked (m, n)."""
        weights = self.model.decoder.weights
        with weights.hold(unit.block):
            parts = [weight_of(self.model.linears[name]).detach() for name in unit.names]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def grams(self, unit: Unit, choice: float | None = None) -> Grams:
        """The Grams that weigh a unit's error; choice: see Metric.chosen."""
        inputs = self.evidence.input_of(unit.leader)
        left = self.left(unit)
        return Grams(left, self._named(unit, lambda: self.metric.chosen(choice).right(inputs)))

    def held_out_grams(self, unit: Unit, choice: float | None = None) -> Grams | None:
        """The right Gram of the held-out windows; None if no held-out token reached the unit."""
        held_out = self.evidence.held_out_of(unit.leader)
        if held_out is None:
            return None
        inputs = self.evidence.input_of(unit.leader)
        return Grams(right=self.metric.chosen(choice).held_out_right(inputs, held_out))

    def left(self, unit: Unit) -> Left:
        """The left Gram of a unit, block-diagonal for several linears; None for metrics without gradients."""
        if not self.metric.needs.gradients:
            return None

        def make(index: int) -> Tensor:
            outputs = self.evidence.output_of(unit.names[index])
            left = self._named(unit, lambda: self.metric.left(outputs))
            assert left is not None, "a metric that needs gradients has a left Gram"
            return left

        return make(0) if len(unit.names) == 1 else Blocks(tuple(rows for rows, _ in unit.shapes), make)

    def choice(self, unit: Unit, keep: float) -> float | None:
        """Metric.choose for a unit; keep: the share of parameters that stays."""
        inputs, held_out = self.evidence.input_of(unit.leader), self.evidence.held_out_of(unit.leader)
        return self._named(unit, lambda: self.metric.choose(self.weight(unit), inputs, held_out, keep))

    @staticmethod
    def _named(unit: Unit, make: Callable[[], T]) -> T:
        """The result of `make`; a SlimrankError from it gets the unit's name."""
        try:
            return make()
        except SlimrankError as error:
            raise SlimrankError(f"At {unit.key}: {error}.") from error


def stacks_of(model: Compressible, leader: Mapping[str, str]) -> list[Unit]:
    """Units of the linears of one module that share an input, if the stacked weight is taller than wide.

    leader: by linear, in the order in which they ran, the first linear that read the same input.
    """
    groups: dict[tuple[str, str], list[Unit]] = {}
    for name, first in leader.items():
        groups.setdefault((name.rpartition(".")[0], first), []).append(model.units[name])
    return [unit for units in groups.values() if len(units) > 1 and (unit := stacked(units)).tall]


def reached(model: Compressible, leader: Iterable[str]) -> list[Unit]:
    """The linears that calibration tokens reached, in the model's order."""
    seen = set(leader)
    return [unit for name, unit in model.units.items() if name in seen]
