"""Calibrated prices: the true KL divergence at a few ranks of every linear corrects what its spectrum predicts."""

import numpy as np
from scipy.stats import spearmanr

from slimrank.allocate.base import Problem, Ranks
from slimrank.allocate.budget import cost, joint_costs
from slimrank.allocate.hull import Floats
from slimrank.allocate.measure import Damage
from slimrank.run.session import Group

LIMIT = 4.0  # a correction beyond this factor either way says more of the few windows than of the linear
EXPONENTS = (0.5, 2.0)

Readings = dict[Group, tuple[Floats, Floats]]


def measure(problem: Problem, losses: dict[Group, Floats], ranks: Ranks, *, points: int, windows: int) -> Readings:
    """Predicted loss and measured KL divergence, in nats per token, of each group cut alone at up to `points` ranks.

    The ranks go down from the one given (the full rank for dense), or for several linears as one from that which costs
    as much as theirs, in equal steps.
    """
    damage = Damage(problem.session, windows=windows)
    tokens = problem.session.windows.calibration.shape[1]
    readings = {}
    for group, curve in losses.items():
        alone = len(group) == 1
        top = min((ranks[group[0]] if alone else rank_joined(problem, group, ranks)) or len(curve), len(curve) - 2)
        tried = sorted({max(1, round(top * (points - i) / points)) for i in range(points)})
        nats = [damage.kl({group[0]: rank}) if alone else damage.kl_joined(group, rank) for rank in tried]
        readings[group] = (curve[tried], np.array(nats) / tokens)
    return readings


def rank_joined(problem: Problem, group: Group, ranks: Ranks) -> int:
    """The largest rank of the group as one that costs no more than these ranks of its linears."""
    budget = sum(cost(problem, name, ranks[name]) for name in group)
    falling = range(min(problem.joint[group].shape), 0, -1)
    return next((rank for rank in falling if sum(joint_costs(problem, group, rank)) <= budget), 1)


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
        f"Predicted against measured KL of {len(measured)} cuts in {len(readings)} linears and groups of them: "
        f"Spearman rank correlation {correlation:.3f}."
    )
