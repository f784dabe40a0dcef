"""What the charts show, as columns: {"linears": {"block": [0, 0, ...], "type": ["q_proj", ...], ...}}."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slimrank.checkpoint.account import CurvePoints
from slimrank.plan import LinearPlan, Plan, Size

Columns = dict[str, list[Any]]


def types_of(plan: Plan) -> dict[str, str]:
    """Each role's shortest dotted ending that no other role has, such as q_proj for self_attn.q_proj."""
    roles = list(dict.fromkeys(linear.role for linear in plan.linears.values()))

    def ending(role: str) -> str:
        parts = role.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        return next(e for e in endings if e == role or not any(r != role and f".{r}".endswith(f".{e}") for r in roles))

    return {role: ending(role) for role in roles}


def linear_columns(plan: Plan, **more: Any) -> Columns:
    """A row per linear: where it is, what it got, and the error predicted and measured."""
    types = types_of(plan)
    return columns([row_of(name, linear, types) | more for name, linear in plan.linears.items()])


def row_of(name: str, linear: LinearPlan, types: Mapping[str, str]) -> dict[str, Any]:
    """One linear; cell is what fits into a square of the map, bits the mean of a number of the dense linear."""
    dense = math.prod(linear.shape)
    size = {} if linear.bytes is None else {"bytes": linear.bytes, "bits": short(8 * linear.bytes / dense)}
    return size | {
        "name": name,
        "block": linear.block,
        "type": types[linear.role],
        "form": linear.form,
        "cell": linear.stored,
        "shape": f"{linear.shape[0]} x {linear.shape[1]}",
        "kept": short(linear.parameters / dense),
        "predicted": short(linear.relative),
        "measured": None if linear.measured is None else short(linear.measured),
    }


def curve_columns(plan: Plan, curves: Mapping[str, CurvePoints]) -> Columns:
    """A row per linear and rank of its curve; cut marks the rank that it got."""
    types = types_of(plan)
    return columns(
        {
            "block": linear.block,
            "type": types[linear.role],
            "rank": rank,
            "singular": singular,
            "error": error,
            "cut": rank == linear.own_rank,
        }
        for name, linear in plan.linears.items()
        for rank, singular, error in zip(curves[name].ranks, curves[name].singular, curves[name].error, strict=True)
    )


def size_columns(size: Size) -> Columns:
    """A row for each size of the frontier, and for the plan's own the same loss at its bytes."""
    return columns({"megabytes": short(point / 1e6), "nats": short(loss)} for point, loss in size.frontier)


def columns(rows: Iterable[Mapping[str, Any]]) -> Columns:
    """Rows with the same keys, turned."""
    listed = list(rows)
    return {key: [row[key] for row in listed] for key in (listed[0] if listed else ())}


def joined(parts: Sequence[Columns]) -> Columns:
    """Columns with the same keys, one after the other."""
    return {key: [value for part in parts for value in part[key]] for key in (parts[0] if parts else ())}


def root_mean_square(values: Iterable[float | None]) -> float | None:
    """None if there are none, or one of them is not known."""
    known = list(values)
    if not known or None in known:
        return None
    return (sum(v * v for v in known if v is not None) / len(known)) ** 0.5


def short(value: float) -> float:
    """Four digits, which is what a picture shows."""
    return float(f"{value:.4g}")
