"""A plan: per linear its form and rank, and the budget's arithmetic; JSON that a person can read, edit and apply."""

import json
from pathlib import Path
from reprlib import repr as shortly
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from torch import nn

from slimrank.allocate.base import allowed
from slimrank.errors import UsageError, uncapitalized
from slimrank.forms import Joint
from slimrank.model.decoder import Decoder, fingerprint
from slimrank.model.linear import shape_of
from slimrank.recipe import Recipe
from slimrank.runtime.finite import require_finite

__all__ = ["Budget", "LinearPlan", "Plan", "check_plan", "fingerprint"]

VERSION = 1


class LinearPlan(BaseModel):
    """One linear: which block it is in, its role (its name inside the block), and what it becomes.

    rank None leaves it dense. joint: the first linear of those that become one factorisation with it; they all have
    its rank, and the first one counts what they share and has the loss of all. loss: the squared error in the metric;
    relative: the error's share of the output's norm there. Known only after compression, measured: the same share on
    held-out windows; layer: the entry of what was built, such as {"form": "columns", "rank": 20, "columns": 7}, which
    may cost less than `rank`.
    """

    model_config = ConfigDict(extra="forbid")

    block: int
    role: str
    form: str
    rank: int | None = None
    joint: str | None = None
    shape: tuple[int, int]
    parameters: int
    loss: float = 0.0
    relative: float = 0.0
    measured: float | None = None
    layer: dict[str, Any] | None = None

    @property
    def own_rank(self) -> int | None:
        """The rank at which this linear's own spectrum is cut, if it is."""
        return None if self.joint else self.rank


class Budget(BaseModel):
    """Numbers in the compressed linears: when dense, allowed, and used by the plan."""

    model_config = ConfigDict(extra="forbid")

    dense: int
    allowed: int
    used: int


class Plan(BaseModel):
    """What each linear gets, under which recipe, for which model, from which calibration."""

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    keep: float
    model: dict[str, str]
    calibration: dict[str, Any]
    recipe: Recipe
    budget: Budget
    notes: list[str] = []
    linears: dict[str, LinearPlan]

    def blocks(self) -> dict[int, dict[str, LinearPlan]]:
        """The linears by block and role."""
        blocks: dict[int, dict[str, LinearPlan]] = {}
        for linear in self.linears.values():
            blocks.setdefault(linear.block, {})[linear.role] = linear
        return blocks

    def joint(self) -> dict[str, list[str]]:
        """The linears that become one factorisation, by the first one's name."""
        groups: dict[str, list[str]] = {}
        for name, linear in self.linears.items():
            if linear.joint is not None and linear.rank is not None:
                groups.setdefault(linear.joint, []).append(name)
        return groups

    def to_json(self) -> str:
        """The plan's file; a SlimrankError for numbers that are not finite."""
        require_finite(self.model_dump(mode="python"), "The plan")
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read it back.

        Raises:
            UsageError: naming the file and the key that is wrong.
        """
        try:
            return cls.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise UsageError(
                f"Plan {path}, key {key!r}: {uncapitalized(first['msg'].removeprefix('Value error, '))}."
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise UsageError(
                f"Plan {path} cannot be read as JSON ({error}): give a file that slimrank plan wrote."
            ) from error


def check_plan(plan: Plan, decoder: Decoder, linears: dict[str, nn.Module]) -> Plan:
    """The plan with its arithmetic done again, after a person may have edited it.

    Raises:
        UsageError: if a linear is not in the model, a shape or rank does not fit, or the budget it states is overshot.
    """
    if plan.version != VERSION:
        raise UsageError(f"The plan has version {plan.version}, this slimrank reads {VERSION}: make it again.")
    if plan.model != fingerprint(decoder):
        raise UsageError(
            f"The plan was made for {shortly(plan.model)}, this model is {fingerprint(decoder)}: make it again."
        )
    checked = {}
    for name, linear in plan.linears.items():
        if name not in linears:
            raise UsageError(f"The plan names {name}, which is no linear of this model's blocks: remove it.")
        shape = shape_of(linears[name])
        if linear.shape != shape:
            raise UsageError(f"The plan gives {name} the shape {linear.shape}, the model has {shape}: make it again.")
        block, role = decoder.weights.part_of(name), decoder.role(name)
        if (linear.block, linear.role) != (block, role):
            raise UsageError(
                f"The plan puts {name} into block {linear.block} as {linear.role!r}, where the model has it in block "
                f"{block} as {role!r}: make it again."
            )
        if linear.rank is not None and not 1 <= linear.rank <= (most := highest_rank(plan, name)):
            raise UsageError(f"The plan gives {name} rank {linear.rank}: choose 1 to {most}, or null for dense.")
        checked[name] = _checked(plan, name, linear)
    dense = sum(rows * columns for rows, columns in (linear.shape for linear in checked.values()))
    if dense != plan.budget.dense:
        raise UsageError(
            f"The plan's linears have {dense} parameters and its budget.dense is {plan.budget.dense}: put back those "
            "that were removed, with rank null where they are to stay dense."
        )
    used = sum(linear.parameters for linear in checked.values())
    budget = Budget(dense=dense, allowed=allowed(plan.keep, dense), used=used)
    if budget.used > budget.allowed:
        raise UsageError(
            f"The plan's linears need {budget.used} parameters and its keep, {plan.keep}, allows {budget.allowed}: "
            "lower some ranks or raise keep."
        )
    built = any(linear.layer is not None for linear in plan.linears.values())  # its notes are of that run
    return plan.model_copy(update={"linears": checked, "budget": budget, "notes": [] if built else plan.notes})


def highest_rank(plan: Plan, name: str) -> int:
    """That of a linear, or of those that the plan joins with it."""
    rows, columns = plan.linears[name].shape
    members = plan.joint().get(plan.linears[name].joint or "")
    return min(sum(plan.linears[member].shape[0] for member in members) if members else rows, columns)


def _checked(plan: Plan, name: str, linear: LinearPlan) -> LinearPlan:
    """A linear's plan without what an earlier run made and measured of it."""
    rows, columns = linear.shape
    update: dict[str, Any] = {"measured": None, "layer": None}
    if linear.rank is None:
        nothing = {"form": "dense", "joint": None, "parameters": rows * columns, "loss": 0.0, "relative": 0.0}
        return linear.model_copy(update=update | nothing)
    form = plan.recipe.form
    if linear.joint is not None:
        return linear.model_copy(update=update | {"form": Joint.form, "parameters": _joint_share(plan, name, linear)})
    if linear.form not in (form.name, (linear.layer or {}).get("form")):
        raise UsageError(
            f"The plan gives {name} the form {linear.form!r}, and its recipe builds {form.name!r}: give that, or "
            "rank null for dense."
        )
    return linear.model_copy(update=update | {"form": form.name, "parameters": form.cost(linear.shape, linear.rank)})


def _joint_share(plan: Plan, name: str, linear: LinearPlan) -> int:
    """What a linear of a group stores, as planned."""
    if not plan.recipe.form.joins:
        raise UsageError(f"The plan joins {name} to {linear.joint}, and its recipe's form doesn't: set joint to null.")
    members = sorted(plan.joint()[str(linear.joint)], key=lambda member: member != linear.joint)
    if members[0] != linear.joint or len(members) < 2:
        raise UsageError(
            f"The plan joins {name} to {linear.joint}, which isn't joined to itself and others: set joint to null."
        )
    if {plan.linears[member].rank for member in members} != {linear.rank}:
        raise UsageError(f"The plan joins {', '.join(members)} and gives them several ranks: choose one for all.")
    shapes = [plan.linears[member].shape for member in members]
    return plan.recipe.form.joint_costs(shapes, linear.rank or 0)[members.index(name)]
