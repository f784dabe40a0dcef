"""Calibrated prices: the true KL divergence at a few ranks of every linear corrects what its spectrum predicts."""

import numpy as np
from scipy.stats import spearmanr

from slimrank.allocate.base import Problem, Ranks
from slimrank.allocate.hull import Floats
from slimrank.allocate.measure import Damage

LIMIT = 4.0  # a correction beyond this factor either way says more of the few windows than of the linear
EXPONENTS = (0.5, 2.0)

Readings = dict[str, tuple[Floats, Floats]]


def measure(problem: Problem, losses: dict[str, Floats], ranks: Ranks, *, points: int, windows: int) -> Readings:
    """Predicted loss and measured KL divergence, in nats per token, of each linear cut alone at up to `points` ranks.

    The ranks go down from the one given (the full rank for dense) in equal steps.
    """
    damage = Damage(problem.session, windows=windows)
    tokens = problem.session.windows.calibration.shape[1]
    readings = {}
    for name, curve in losses.items():
        top = min(ranks[name] or len(curve), len(curve) - 2)
        tried = sorted({max(1, round(top * (points - i) / points)) for i in range(points)})
        measured = [damage.kl({name: rank}) / tokens for rank in tried]
        readings[name] = (curve[tried], np.array(measured))
    return readings


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
        f"Predicted against measured KL of {len(measured)} cuts in {len(readings)} linears: "
        f"Spearman rank correlation {correlation:.3f}."
    )
