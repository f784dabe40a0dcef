"""The curves of a run at the few ranks that its account keeps."""

from collections.abc import Mapping

from slimrank.checkpoint.account import CurvePoints
from slimrank.spectrum.curve import Curve

POINTS = 40  # of a curve
TOTAL = 9000  # points of all curves, for models of any depth


def curves_of(curves: Mapping[str, Curve], ranks: Mapping[str, int | None]) -> dict[str, CurvePoints]:
    """Every linear's curve, the rank it was cut to among the points."""
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
