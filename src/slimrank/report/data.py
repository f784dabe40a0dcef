"""What the charts show, as columns: {"linears": {"block": [0, 0, ...], "type": ["q_proj", ...], ...}}."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slimrank.checkpoint.account import CurvePoints
from slimrank.plan import LinearPlan, Plan, Size, Time

Columns = dict[str, list[Any]]


CURVES = 256  # of a mixture's matrices that the page has


def role_of(linear: LinearPlan) -> str:
    """The linear's role, which of an expert's matrix has * for the expert's number."""
    if linear.expert is None:
        return linear.role
    place, _, matrix = linear.role.rpartition(".")
    return f"{place.rpartition('.')[0]}.*.{matrix}"


def types_of(plan: Plan) -> dict[str, str]:
    """Each role's shortest dotted ending that no other role has, such as q_proj for self_attn.q_proj."""
    roles = list(dict.fromkeys(map(role_of, plan.linears.values())))

    def ending(role: str) -> str:
        parts = role.split(".")
        endings = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        return next(e for e in endings if e == role or not any(r != role and f".{r}".endswith(f".{e}") for r in roles))

    return {role: ending(role) for role in roles}


def linear_columns(plan: Plan, **more: Any) -> Columns:
    """A row per linear: where it is, what it got, and the error predicted and measured.

    The matrices that a mixture's experts have in one place are a row: their number is that of all, their rank the mean,
    their error the root mean square.
    """
    types, alike = types_of(plan), dict[tuple[str, str], dict[str, LinearPlan]]()
    for name, linear in plan.linears.items():
        place = name if linear.expert is None else name.removesuffix(linear.role) + role_of(linear)
        alike.setdefault((place, types[role_of(linear)]), {})[name] = linear
    return columns([row_of(place, list(own.values()), kind) | more for (place, kind), own in alike.items()])


def row_of(name: str, linears: Sequence[LinearPlan], kind: str) -> dict[str, Any]:
    """One linear, or all experts' of one kind.

    cell is what fits into a square of the map, bits the mean of a number of the dense linear.
    """
    sizes = [linear.bytes for linear in linears if linear.bytes is not None]
    first, dense = linears[0], sum(math.prod(linear.shape) for linear in linears)
    measured = root_mean_square(linear.measured for linear in linears)
    forms = list(dict.fromkeys(linear.form for linear in linears))
    size = {"bytes": sum(sizes), "bits": short(8 * sum(sizes) / dense)} if len(sizes) == len(linears) else {}
    return size | {
        "name": name,
        "block": first.block,
        "type": kind,
        "form": ", ".join(forms),
        "cell": cell_of(linears),
        "shape": f"{first.shape[0]} x {first.shape[1]}" + (f", {len(linears)} of them" if len(linears) > 1 else ""),
        "kept": short(sum(linear.parameters for linear in linears) / dense),
        "predicted": short(root_mean_square(linear.relative for linear in linears) or 0.0),
        "measured": None if measured is None else short(measured),
    }


def cell_of(linears: Sequence[LinearPlan]) -> str:
    """How one linear is stored; of several the mean rank, a dense one counting as full, or `dense`."""
    if len(linears) == 1:
        return linears[0].stored
    if all(linear.rank is None for linear in linears):
        return "dense"
    ranks = [min(linear.shape) if linear.rank is None else linear.rank for linear in linears]
    return f"~{sum(ranks) / len(ranks):.0f}"


def expert_columns(plan: Plan) -> Columns:
    """A row per matrix of a mixture's expert: its own, its expert's number, and the tokens routed to it."""
    types = types_of(plan)
    return columns(
        row_of(name, [linear], types[role_of(linear)]) | {"expert": linear.expert, "tokens": linear.routed}
        for name, linear in plan.linears.items()
        if linear.expert is not None
    )


def shown_alone(plan: Plan) -> set[str]:
    """The linears that the page has curves and table rows of.

    All, but of a mixture with more than CURVES matrices only those of the experts that saw most and fewest tokens in
    each place.
    """
    experts: dict[str, list[str]] = {}
    for name, linear in plan.linears.items():
        if linear.expert is not None:
            experts.setdefault(name.removesuffix(linear.role) + role_of(linear), []).append(name)
    if sum(map(len, experts.values())) <= CURVES:
        return set(plan.linears)
    left_out = set[str]()
    for names in experts.values():
        names.sort(key=lambda name: plan.linears[name].routed or 0)
        left_out.update(names[1:-1])
    return plan.linears.keys() - left_out


def curve_columns(plan: Plan, curves: Mapping[str, CurvePoints]) -> Columns:
    """A row per linear that is shown alone and rank of its curve; cut marks the rank that it got."""
    types, shown = types_of(plan), shown_alone(plan)
    return columns(
        {
            "block": linear.block,
            "line": line,
            "type": types[role_of(linear)],
            "rank": rank,
            "singular": singular,
            "error": error,
            "cut": rank == linear.own_rank,
        }
        for line, (name, linear) in enumerate(plan.linears.items())
        if name in shown
        for rank, singular, error in zip(curves[name].ranks, curves[name].singular, curves[name].error, strict=True)
    )


def size_columns(size: Size) -> Columns:
    """A row for each size of the frontier, and for the plan's own the same loss at its bytes."""
    return columns({"megabytes": short(point / 1e6), "nats": short(loss)} for point, loss in size.frontier)


def speed_columns(time: Time) -> Columns:
    """A row for each speed of the frontier, as times the dense model's."""
    return columns({"speedup": short(speedup), "nats": short(loss)} for speedup, loss in time.frontier)


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
