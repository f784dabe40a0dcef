"""A plan: per linear its form and rank, and the budget's arithmetic; JSON that a person can read, edit and apply."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from slimrank.errors import UsageError, uncapitalized
from slimrank.forms import FORMS
from slimrank.model.units import Unit, stacked
from slimrank.recipe import Recipe
from slimrank.runtime.finite import require_finite

VERSION = 1


class LinearPlan(BaseModel):
    """One linear: which block it is in, its role (its name inside the block), and what it becomes.

    rank None leaves it dense. unit: the first linear of those that become one factorisation with it, None where it
    becomes one by itself; they all have the same rank, and the first one counts what they share and has the loss of
    all. loss: the squared error in the metric; relative: the error's share of the output's norm there. Known only after
    compression, measured: the same share on held-out windows; layer: the entry of what was built, such as
    {"form": "columns", "rank": 20, "columns": 7}, which may cost less than `rank`.
    """

    model_config = ConfigDict(extra="forbid")

    block: int
    role: str
    form: str
    rank: int | None = None
    unit: str | None = None
    shape: tuple[int, int]
    parameters: int
    loss: float = 0.0
    relative: float = 0.0
    measured: float | None = None
    layer: dict[str, Any] | None = None

    @property
    def own_rank(self) -> int | None:
        """The rank at which this linear's own curve is cut, if it is."""
        return None if self.unit else self.rank

    def built(self, entry: dict[str, Any] | None) -> "LinearPlan":
        """The plan of a linear that has become the layer of this entry, None where it stayed as it was."""
        if entry is None:
            return self
        parameters = FORMS[entry["form"]].count_parameters(*self.shape, entry)
        return self.model_copy(update={"form": entry["form"], "layer": entry, "parameters": parameters})


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

    def ranks(self) -> dict[Unit, int | None]:
        """Every unit and its rank, in the model's order."""
        members: dict[str, list[Unit]] = {}
        for name, linear in self.linears.items():
            leader = linear.unit if linear.unit and linear.rank is not None else name
            single = Unit((name,), linear.block, linear.role, (linear.shape,))
            members.setdefault(leader, []).append(single)
        for leader, units in members.items():
            units.sort(key=lambda unit, leader=leader: unit.leader != leader)  # type: ignore[misc]
        return {stacked(units): self.linears[units[0].leader].rank for units in members.values()}

    def with_linears(self, linears: dict[str, LinearPlan]) -> "Plan":
        """The plan with these linears and what they use."""
        used = sum(linear.parameters for linear in linears.values())
        return self.model_copy(update={"linears": linears, "budget": self.budget.model_copy(update={"used": used})})

    def with_notes(self, notes: Sequence[str]) -> "Plan":
        """The plan with these notes before its own, less those that it has already."""
        return self.model_copy(update={"notes": [*(one for one in notes if one not in self.notes), *self.notes]})

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
