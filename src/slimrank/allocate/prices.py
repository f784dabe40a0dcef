"""Corrected losses: KL measured with all linears of a type cut together corrects what their spectra predict."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from slimrank.allocate.base import Problem, Ranks
from slimrank.allocate.hull import Floats
from slimrank.allocate.measure import Damage
from slimrank.model.units import Unit

LIMIT = 4.0  # corrections beyond this factor are noise of the few windows
TOLD = 2e-8  # nats a token that float32 can tell from none


@dataclass
class Reading:
    """Nats a token of all linears of a type cut together: the sum of their losses, and KL."""

    predicted: float = 0.0
    measured: float = 0.0

    @property
    def ratio(self) -> float:
        """Measured over predicted, within a factor LIMIT; 1 where the prediction can't be told from none."""
        if self.predicted <= TOLD:
            return 1.0
        return min(max(self.measured / self.predicted, 1 / LIMIT), LIMIT)


def measure(problem: Problem, losses: Mapping[Unit, Floats], ranks: Ranks) -> dict[str, Reading]:
    """By type of linear the reading of all its units at these ranks on the held-out windows, the others being dense.

    The reading of units of several linears counts for each of their types.
    """
    ids, units = problem.spectra.evidence.windows.held_out, problem.spectra.model.units
    damage = Damage(problem.spectra, ids=ids, pieces=problem.run.pieces)
    cut: dict[str, dict[Unit, int]] = defaultdict(dict)
    for unit, rank in ranks.items():
        if rank is not None:
            cut[unit.type][unit] = rank
    readings: dict[str, Reading] = defaultdict(Reading)
    for own in cut.values():
        predicted = sum(float(losses[unit][rank]) for unit, rank in own.items())
        measured = damage.kl({**own}) / ids.shape[1]
        for kind in dict.fromkeys(units[name].type for unit in own for name in unit.names):
            readings[kind].predicted += predicted
            readings[kind].measured += measured
    return dict(readings)


def ratio(problem: Problem, unit: Unit, readings: Mapping[str, Reading]) -> float:
    """What a unit's losses are multiplied by: the mean ratio of its linears' types, 1 of a type that was not cut."""
    types = [problem.spectra.model.units[name].type for name in unit.names]
    return fmean(readings.get(kind, Reading()).ratio for kind in types)


def told(readings: Mapping[str, Reading]) -> str:
    """A note with the ratio of every type."""
    found = ", ".join(f"{kind} {reading.ratio:.2f}" for kind, reading in readings.items())
    return f"KL on the held-out windows over the predicted loss, a type of linear at a time: {found}."
