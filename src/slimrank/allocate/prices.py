"""Calibrated losses: KL measured at a few ranks of every unit corrects what its spectrum predicts."""

import numpy as np
from scipy.stats import spearmanr

from slimrank.allocate.base import Problem, Ranks
from slimrank.allocate.hull import Floats
from slimrank.allocate.measure import Damage
from slimrank.model.units import Unit

LIMIT = 4.0  # corrections beyond this factor are noise of the few windows
EXPONENTS = (0.5, 2.0)

Readings = dict[Unit, tuple[Floats, Floats]]


def measure(problem: Problem, losses: dict[Unit, Floats], ranks: Ranks, *, points: int, windows: int) -> Readings:
    """Predicted loss and measured KL, in nats per token, of each unit truncated alone at up to `points` ranks.

    The ranks descend in equal steps from `top_rank`, or from the full rank where that is dense.
    """
    damage = Damage(problem.spectra, windows=windows, pieces=problem.run.pieces)
    tokens = problem.spectra.evidence.windows.calibration.shape[1]
    readings = {}
    for unit, curve in losses.items():
        top = min(top_rank(problem, unit, ranks) or len(curve), len(curve) - 2)
        grid = sorted({max(1, round(top * (points - i) / points)) for i in range(points)})
        readings[unit] = (curve[grid], np.array([damage.kl({unit: rank}) for rank in grid]) / tokens)
    return readings


def top_rank(problem: Problem, unit: Unit, ranks: Ranks) -> int | None:
    """The rank assigned to a unit or to the unit it is part of, else the largest that costs what its linears do."""
    if unit in ranks:
        return ranks[unit]
    unit_of = {name: assigned for assigned in ranks for name in assigned.names}
    if len(unit.names) == 1:
        return ranks[unit_of[unit.leader]]
    parts = dict.fromkeys(unit_of[name] for name in unit.names)
    budget = sum(problem.cost(part, ranks[part]) for part in parts)
    return next((rank for rank in range(unit.full_rank, 0, -1) if problem.cost(unit, rank) <= budget), 1)


def corrected_losses(losses: Floats, predicted: Floats, measured: Floats) -> Floats:
    """a losses^b, with a and b fitted to the readings by least squares of logarithms, within a factor LIMIT of losses.

    losses: (q + 1,); predicted, measured: (readings,). b is 1 for one reading, or if all predictions are equal.
    """
    sound = (predicted > 0) & (measured > 0)
    if not sound.any():
        return losses
    x, y = np.log(predicted[sound]), np.log(measured[sound])
    spread = np.square(x - x.mean()).sum()
    exponent = np.clip((x - x.mean()) @ (y - y.mean()) / spread, *EXPONENTS) if spread > 1e-12 else 1.0
    with np.errstate(over="ignore"):  # inf is clipped below
        fitted = np.exp(y.mean()) * np.power(losses / np.exp(x.mean()), exponent)
    return np.clip(fitted, losses / LIMIT, losses * LIMIT)


def agreement(readings: Readings) -> str:
    """A note on how well predicted losses rank the measured KL."""
    predicted, measured = (np.concatenate(values) for values in zip(*readings.values(), strict=True))
    correlation = spearmanr(predicted, measured).statistic
    return (
        f"Predicted losses rank the measured KL of {len(measured)} truncations of {len(readings)} units with a "
        f"Spearman correlation of {correlation:.3f}."
    )
