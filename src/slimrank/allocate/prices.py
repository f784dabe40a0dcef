"""Calibrated prices: the true KL divergence at a few ranks of every linear corrects what its spectrum predicts."""

import numpy as np
from scipy.stats import spearmanr

from slimrank.allocate.base import Problem, Ranks
from slimrank.allocate.hull import Floats
from slimrank.allocate.measure import Damage
from slimrank.model.units import Unit

LIMIT = 4.0  # a correction beyond this factor either way says more of the few windows than of the linear
EXPONENTS = (0.5, 2.0)

Readings = dict[Unit, tuple[Floats, Floats]]


def measure(problem: Problem, losses: dict[Unit, Floats], ranks: Ranks, *, points: int, windows: int) -> Readings:
    """Predicted loss and measured KL divergence, in nats per token, of each unit cut alone at up to `points` ranks.

    The ranks go down in equal steps from the one given (the full rank for dense) or, where the unit's linears were
    given other ranks or one by one, from that which costs as much as theirs.
    """
    damage = Damage(problem.spectra, windows=windows)
    tokens = problem.spectra.evidence.windows.calibration.shape[1]
    readings = {}
    for unit, curve in losses.items():
        top = min(top_rank(problem, unit, ranks) or len(curve), len(curve) - 2)
        tried = sorted({max(1, round(top * (points - i) / points)) for i in range(points)})
        readings[unit] = (curve[tried], np.array([damage.kl({unit: rank}) for rank in tried]) / tokens)
    return readings


def top_rank(problem: Problem, unit: Unit, ranks: Ranks) -> int | None:
    """The rank that a unit was given, by itself or in another one, or the largest that costs what its linears do."""
    if unit in ranks:
        return ranks[unit]
    given = {name: one for one in ranks for name in one.names}
    if len(unit.names) == 1:
        return ranks[given[unit.leader]]
    budget = sum(problem.cost(one, ranks[one]) for one in dict.fromkeys(given[name] for name in unit.names))
    return next((rank for rank in range(unit.full_rank, 0, -1) if problem.cost(unit, rank) <= budget), 1)


def corrected_losses(losses: Floats, predicted: Floats, measured: Floats) -> Floats:
    """a losses^b fitted to the readings by least squares of the logarithms, within a factor of LIMIT of the losses.

    With one reading, or where they all predict the same, b is 1.
    """
    sound = (predicted > 0) & (measured > 0)
    if not sound.any():
        return losses
    x, y = np.log(predicted[sound]), np.log(measured[sound])
    spread = np.square(x - x.mean()).sum()
    exponent = np.clip((x - x.mean()) @ (y - y.mean()) / spread, *EXPONENTS) if spread > 1e-12 else 1.0
    with np.errstate(over="ignore"):  # what is beyond all numbers is clipped
        fitted = np.exp(y.mean()) * np.power(losses / np.exp(x.mean()), exponent)
    return np.clip(fitted, losses / LIMIT, losses * LIMIT)


def agreement(readings: Readings) -> str:
    """How well the predictions rank the measured divergences, as a sentence."""
    predicted, measured = (np.concatenate(values) for values in zip(*readings.values(), strict=True))
    correlation = spearmanr(predicted, measured).statistic
    return (
        f"Predicted against measured KL of {len(measured)} cuts of {len(readings)} units: "
        f"Spearman rank correlation {correlation:.3f}."
    )
