"""Curves reduced to a few ranks, for the account that is saved with the checkpoint."""

from collections.abc import Mapping

from slimrank.checkpoint.account import CurvePoints
from slimrank.spectrum.curve import Curve

POINTS = 40  # the most points of a curve
TOTAL = 9000  # points of all curves, so that the account stays small in deep models


def curves_of(curves: Mapping[str, Curve], ranks: Mapping[str, int | None]) -> dict[str, CurvePoints]:
    """Every linear's curve as points, its planned rank among them."""
    points = max(12, min(POINTS, TOTAL // max(1, len(curves))))
    return {name: points_of(curve, ranks.get(name), points) for name, curve in curves.items()}


def points_of(curve: Curve, cut: int | None, points: int) -> CurvePoints:
    """A curve at no more than `points` ranks, evenly spaced, with the first, the last and `cut` among them."""
    full = len(curve.values)
    evenly = {1 + round(i * (full - 1) / max(points - 2, 1)) for i in range(points - 1)}
    ranks = sorted({rank for rank in (*evenly, cut or 1) if 1 <= rank <= full})
    losses = curve.losses().tolist()
    first, norm = max(curve.values[0].item(), 1e-300), max(losses[0], 1e-300)
    return CurvePoints(
        ranks=ranks,
        singular=[_short(curve.values[rank - 1].item() / first) for rank in ranks],
        error=[_short((losses[rank] / norm) ** 0.5) for rank in ranks],
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")
