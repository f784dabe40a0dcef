"""Validation of a plan, which a person may have edited, against its model and budget."""

from reprlib import repr as shortly
from typing import Any

from slimrank.allocate.base import allowed
from slimrank.errors import UsageError
from slimrank.factorize.shared import form_for
from slimrank.model.compressible import Compressible
from slimrank.model.fingerprint import fingerprint
from slimrank.model.units import Unit
from slimrank.plan import VERSION, Budget, LinearPlan, Plan


def check_plan(plan: Plan, model: Compressible) -> Plan:
    """The plan with parameters and budget computed again.

    Raises:
        UsageError: if a linear is not in the model, a shape or rank does not fit, or the plan is over its budget.
    """
    _check_model(plan, model)
    for name, linear in plan.linears.items():
        _check_place(name, linear, model)
    _check_leaders(plan)
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
    built = any(linear.layer is not None for linear in plan.linears.values())  # its notes describe that run
    return plan.model_copy(update={"linears": linears, "budget": budget, "notes": [] if built else plan.notes})


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
    if rank is None:
        (name,), (linear,) = linears.keys(), linears.values()
        nothing = {"form": "dense", "unit": None, "parameters": unit.parameters, "loss": 0.0, "relative": 0.0}
        return {name: linear.model_copy(update=update | nothing)}
    _check_unit(plan, unit)
    least = 0 if model.units[unit.leader].mixture else 1
    if not least <= rank <= unit.full_rank:
        raise UsageError(
            f"The plan gives {unit.leader} rank {rank}: choose {least} to {unit.full_rank}, or null for dense."
        )
    form = form_for(plan.recipe.form, unit)
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
