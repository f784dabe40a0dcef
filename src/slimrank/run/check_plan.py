"""Validation of a plan, which a person may have edited, against its model and budget."""

from collections.abc import Mapping
from reprlib import repr as shortly
from typing import Any

import torch

from slimrank.allocate.base import allowed
from slimrank.allocate.seconds import Seconds, Times
from slimrank.budget.bytes import ByteBudget
from slimrank.budget.ends import head_bits
from slimrank.budget.seconds import seconds
from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.shared import form_for
from slimrank.forms import Form
from slimrank.model.compressible import Compressible
from slimrank.model.fingerprint import fingerprint
from slimrank.model.units import Unit
from slimrank.plan import VERSION, Budget, LinearPlan, Plan, Size, Time
from slimrank.refine.round import Round
from slimrank.rounding.grid import Grid


def check_plan(plan: Plan, model: Compressible, stored: torch.dtype = torch.bfloat16) -> Plan:
    """The plan with parameters, bytes and budget computed again; stored: the dtype of the checkpoint's floats.

    Raises:
        UsageError: if a linear is not in the model, a shape or rank does not fit, or the plan is over its budget.
    """
    _check_model(plan, model)
    for name, linear in plan.linears.items():
        _check_place(name, linear, model)
    _check_leaders(plan)
    unknown = next((name for name in plan.ends if name not in model.ends), None)
    if unknown is not None:
        raise UsageError(f"The plan's ends name {unknown}, which is not this model's embedding or head: remove it.")
    ranks = plan.ranks()
    checked = {
        name: linear for unit, rank in ranks.items() for name, linear in _checked(plan, unit, rank, model).items()
    }
    linears = {name: checked[name] for name in plan.linears}
    dense = sum(unit.parameters for unit in ranks)
    if dense != plan.budget.dense:
        raise UsageError(
            f"The plan's linears have {dense} parameters and its budget.dense is {plan.budget.dense}: put the removed "
            "linears back, with rank null to leave them dense."
        )
    used = sum(linear.parameters for linear in linears.values())
    budget = Budget(dense=dense, allowed=allowed(plan.keep, dense), used=used)
    if budget.used > budget.allowed:
        raise UsageError(
            f"The plan's linears need {budget.used} parameters and its keep, {plan.keep}, allows {budget.allowed}: "
            "lower some ranks or raise keep."
        )
    size, time = plan.size, plan.time
    if size is not None:
        linears, size = _counted(plan, size, ranks, linears, model, stored)
    if time is not None:
        time = _timed(plan, time, ranks, linears, model)
    built = any(linear.layer is not None for linear in plan.linears.values())  # its notes describe that run
    notes = [] if built else plan.notes
    update = {"linears": linears, "budget": budget, "size": size, "time": time, "notes": notes}
    return plan.model_copy(update=update)


def _counted(
    plan: Plan,
    size: Size,
    ranks: Mapping[Unit, int | None],
    linears: dict[str, LinearPlan],
    model: Compressible,
    stored: torch.dtype,
) -> tuple[dict[str, LinearPlan], Size]:
    """The linears with their bytes, and the size with the file's."""
    own = grids_of(ranks, linears)
    ledger = ByteBudget(size.allowed, stored, plan.ends).ledger(model, plan.recipe.form)
    used = ledger.total(ranks, own)
    if used > size.allowed:
        raise UsageError(
            f"The plan's checkpoint takes {used} bytes and its size.allowed is {size.allowed}: lower some ranks or "
            "bits, or raise size.allowed."
        )
    size = size.model_copy(update={"used": used, "bits": 8 * used / ledger.numbers(), "dense": ledger.dense()})
    return ledger.counted(linears, ranks, own), size


def _timed(
    plan: Plan, time: Time, ranks: Mapping[Unit, int | None], linears: dict[str, LinearPlan], model: Compressible
) -> Time:
    """The time with the seconds of the plan as it is now, by the layers that were measured for it."""
    head = time.heads.get(head_bits(model, plan.ends), max(time.heads.values(), default=0.0))
    cost = Seconds(plan.recipe.form, Times(time.seconds))
    used = time.rest + head + seconds(cost, ranks, grids_of(ranks, linears))
    if used * time.asked > time.dense * (1 + 1e-6):
        raise UsageError(
            f"The plan is predicted to be {time.dense / used:.3f} times as fast as the dense model and its time.asked "
            f"is {time.asked:g}: lower some ranks or time.asked."
        )
    return time.model_copy(update={"used": used})


def grids_of(ranks: Mapping[Unit, int | None], linears: dict[str, LinearPlan]) -> dict[Unit, Grid]:
    """The grids of the units that are rounded."""
    return {unit: grid for unit in ranks if (grid := linears[unit.leader].grid) is not None}


def _check_model(plan: Plan, model: Compressible) -> None:
    if plan.version != VERSION:
        raise UsageError(f"The plan has version {plan.version}, this slimrank reads {VERSION}: make it again.")
    own = fingerprint(model.decoder)
    if plan.model != own:
        raise UsageError(f"The plan was made for {shortly(plan.model)}, this model is {own}: make it again.")


def _check_place(name: str, linear: LinearPlan, model: Compressible) -> None:
    if name not in model.units:
        raise UsageError(f"The plan names {name}, which is no linear of this model's blocks: remove it.")
    unit = model.units[name]
    if linear.shape != unit.shape:
        raise UsageError(f"The plan gives {name} the shape {linear.shape}, the model has {unit.shape}: make it again.")
    if (linear.block, linear.role) != (unit.block, unit.role):
        raise UsageError(
            f"The plan puts {name} into block {linear.block} as {linear.role!r}, where the model has it in block "
            f"{unit.block} as {unit.role!r}: make it again."
        )


def _checked(plan: Plan, unit: Unit, rank: int | None, model: Compressible) -> dict[str, LinearPlan]:
    """The plans of a unit's linears without the layers and measurements of an earlier run."""
    linears = {name: plan.linears[name] for name in unit.names}
    update: dict[str, Any] = {"measured": None, "layer": None}
    grid = _grid_of(plan, unit)
    if rank is None:
        (name,), (linear,) = linears.keys(), linears.values()
        update |= {"form": "dense", "unit": None, "parameters": unit.parameters}
        return {name: linear.model_copy(update=update if grid else update | {"loss": 0.0, "relative": 0.0})}
    _check_unit(plan, unit)
    least = 0 if model.units[unit.leader].mixture else 1
    if not least <= rank <= unit.full_rank:
        raise UsageError(
            f"The plan gives {unit.leader} rank {rank}: choose {least} to {unit.full_rank}, or null for dense."
        )
    form = form_for(plan.recipe.form, unit) if grid is None else LowRankFactorizer()
    entries, costs = form.entries(unit.shapes, rank), form.costs(unit.shapes, rank)
    for name, linear in linears.items():
        known = {entry["form"] for entry in entries} | {form.name, (linear.layer or {}).get("form")}
        if linear.form not in known:
            raise UsageError(
                f"The plan gives {name} the form {linear.form!r}, but its recipe builds {form.name!r}: give that, or "
                "rank null for dense."
            )
    return {
        name: linear.model_copy(update=update | {"form": entry["form"], "parameters": cost})
        for (name, linear), entry, cost in zip(linears.items(), entries, costs, strict=True)
    }


def _grid_of(plan: Plan, unit: Unit) -> Grid | None:
    """The grid of a unit, None for floats; a UsageError for one that can't have it."""
    linear = plan.linears[unit.leader]
    grid = linear.grid
    if grid is None:
        return None
    if not any(isinstance(step, Round) for step in plan.recipe.refine):
        raise UsageError(f"The plan gives {unit.leader} {grid.bits} bits, but its recipe has no refiner round.")
    if len(unit.names) > 1:
        raise UsageError(f"The plan gives {unit.leader} bits and a unit of several linears: set one of both to null.")
    Form.check_bits(unit.leader, grid.bits, grid.group)
    return grid


def _check_unit(plan: Plan, unit: Unit) -> None:
    """Raise a UsageError if the linears of a unit cannot be factorised together."""
    linears = {name: plan.linears[name] for name in unit.names}
    allowed_here = plan.recipe.form.shared if unit.shared else plan.recipe.form.stacks
    wrong = next((name for name, own in linears.items() if own.unit is not None and not allowed_here), None)
    if wrong:
        raise UsageError(
            f"The plan gives {wrong} the unit {linears[wrong].unit}, but its recipe's form factorises every linear "
            "alone: set unit to null."
        )
    for name, linear in linears.items():
        if linear.unit is not None and len(linears) < 2:
            raise _not_first(name, linear)
    if len({linear.rank for linear in linears.values()}) > 1:
        raise UsageError(f"The plan gives {', '.join(linears)} one unit but several ranks: choose one rank for all.")


def _check_leaders(plan: Plan) -> None:
    """Raise a UsageError if `unit` names a linear that is not the first of that unit."""
    for name, linear in plan.linears.items():
        first = plan.linears.get(linear.unit or name)
        if linear.rank is None or not linear.unit:
            continue
        if first is None or first.rank is None or first.unit != linear.unit:
            raise _not_first(name, linear)


def _not_first(name: str, linear: LinearPlan) -> UsageError:
    return UsageError(
        f"The plan gives {name} the unit {linear.unit}, which is not the first of several linears with that unit: "
        "set unit to null."
    )
