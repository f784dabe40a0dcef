"""The plan: the form and rank of each linear and the parameter budget, as JSON that a person can read and edit."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

from slimrank.errors import UsageError, uncapitalized
from slimrank.forms import FORMS
from slimrank.forms.shared import side_of
from slimrank.model.units import Unit, shared, stacked
from slimrank.recipe import Recipe
from slimrank.rounding.grid import Grid
from slimrank.runtime.finite import require_finite

VERSION = 1


def without(dumped: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The dump without those of these keys that have no value."""
    return {key: value for key, value in dumped.items() if value or key not in keys}


class LinearPlan(BaseModel):
    """One linear: its decoder block, its role (its name inside the block), its form and its rank.

    rank: None leaves it dense. unit: the name of the first linear of the unit it is factorised in, None if it is
    factorised alone; all linears of a unit have one rank, and the first carries their shared parameters and loss.
    loss: the squared error in the metric; relative: the error's norm over the output's norm there. Known after
    compression: measured, that ratio on held-out windows, and layer, the entry of the layer that was built, such as
    {"form": "columns", "rank": 20, "columns": 7}, which may have fewer parameters than `rank` allows. bits, group: the
    width of its numbers and the inputs that share a scale (None: a whole row), where it is rounded; bytes: what its
    tensors take, where the budget is one of bytes. expert, routed: of the matrix of a mixture's expert, the expert's
    number and the calibration tokens routed to it.
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
    expert: int | None = None
    routed: int | None = None
    bits: int | None = None
    group: int | None = None
    bytes: int | None = None

    @model_serializer(mode="wrap")
    def _without_bits(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(dump(self), "bits", "group", "bytes")

    @property
    def grid(self) -> Grid | None:
        """The grid of its numbers, None for floats."""
        return None if self.bits is None else Grid(self.bits, self.group)

    @property
    def own_rank(self) -> int | None:
        """The rank of a linear that is factorised alone, None otherwise."""
        return None if self.unit else self.rank

    @property
    def stored(self) -> str:
        """How it is stored, in a word: "dense", its rank, and its bits."""
        rank = "" if self.rank is None else str(self.rank)
        return " ".join(part for part in (rank, self.bits and f"{self.bits}b") if part) or "dense"

    def built(self, entry: dict[str, Any] | None) -> "LinearPlan":
        """This plan with the form and parameters of the layer that was built; unchanged if `entry` is None."""
        if entry is None:
            return self
        parameters = FORMS[entry["form"]].count_parameters(*self.shape, entry)
        update = {"form": entry["form"], "layer": entry, "parameters": parameters}
        if "bits" in entry:
            update |= {"bits": entry["bits"], "group": entry.get("group")}
        return self.model_copy(update=update)


class Budget(BaseModel):
    """Parameters of the compressed linears: dense, allowed by `keep`, and used by the plan."""

    model_config = ConfigDict(extra="forbid")

    dense: int
    allowed: int
    used: int


class Size(BaseModel):
    """Bytes of the checkpoint's weights: of the dense model, allowed, and used by the plan; bits: of a number, mean.

    ends: the loss expected of the rounded embedding and head, 0 where it was not priced. frontier: the loss expected of
    the best plans of other sizes, by bytes; speeds: how many times as fast as the dense model each of these decodes,
    where layers were timed on this machine before.
    """

    model_config = ConfigDict(extra="forbid")

    dense: int
    allowed: int
    used: int
    bits: float
    ends: float = 0.0
    frontier: list[tuple[int, float]] = []
    speeds: list[float] = []


class Time(BaseModel):
    """Predicted seconds of one call with `tokens` at once, on the machine where layers of that dtype were timed.

    asked: how many times as fast as the dense model; dense: its seconds; rest: those of all that is neither a linear of
    the plan nor the head; used: of the planned model. ends: the loss expected of the rounded embedding and head.
    frontier: the loss expected of the best plans of other speeds, as times the dense one. heads: seconds of the head by
    its bits, 16 for floats; seconds: of layers at the ranks that were measured, by shape, form and bits.
    """

    model_config = ConfigDict(extra="forbid")

    asked: float
    tokens: int
    machine: str
    dtype: str
    dense: float
    rest: float
    used: float
    ends: float = 0.0
    frontier: list[tuple[float, float]] = []
    heads: dict[int, float] = {}
    seconds: dict[str, list[tuple[int, float]]]

    @property
    def speedup(self) -> float:
        """How many times as fast as the dense model."""
        return self.dense / self.used

    @property
    def call(self) -> str:
        """What is timed."""
        return "decoding a token" if self.tokens == 1 else f"a prefill of {self.tokens} tokens"

    def sentence(self) -> str:
        """The prediction for people."""
        return (
            f"{self.speedup:.2f} times the dense model's speed predicted for {self.call} ({1000 * self.used:,.1f} "
            f"instead of {1000 * self.dense:,.1f} ms, {self.dtype}, {self.machine})"
        )


class Plan(BaseModel):
    """The plan of every linear, with the recipe, the model's fingerprint and the calibration that it was made from.

    size, time: the budget of bytes or seconds, where it is one; the budget of parameters then allows all. ends: the
    bits of embeddings and head, by name, where they are rounded.
    """

    model_config = ConfigDict(extra="forbid")

    version: int = VERSION
    keep: float
    model: dict[str, str]
    calibration: dict[str, Any]
    recipe: Recipe
    budget: Budget
    notes: list[str] = []
    linears: dict[str, LinearPlan]
    size: Size | None = None
    time: Time | None = None
    ends: dict[str, int] = {}

    @model_serializer(mode="wrap")
    def _without_size(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return without(dump(self), "size", "time", "ends")

    @property
    def predicted(self) -> float:
        """The summed predicted loss of all linears, and of the ends."""
        ends = sum(budget.ends for budget in (self.size, self.time) if budget)
        return sum(linear.loss for linear in self.linears.values()) + ends

    def blocks(self) -> dict[int, dict[str, LinearPlan]]:
        """The linears' plans by block index and role."""
        blocks: dict[int, dict[str, LinearPlan]] = {}
        for linear in self.linears.values():
            blocks.setdefault(linear.block, {})[linear.role] = linear
        return blocks

    def ranks(self) -> dict[Unit, int | None]:
        """The rank of every unit (None: dense), in the model's order."""
        members: dict[str, list[Unit]] = {}
        for name, linear in self.linears.items():
            leader = linear.unit if linear.unit and linear.rank is not None else name
            single = Unit((name,), linear.block, linear.role, (linear.shape,))
            members.setdefault(leader, []).append(single)
        for leader, units in members.items():
            units.sort(key=lambda unit, leader=leader: unit.leader != leader)  # type: ignore[misc]
        firsts = {leader: self.linears[units[0].leader] for leader, units in members.items()}
        return {
            shared(units, side) if (side := side_of(firsts[leader].form)) else stacked(units): firsts[leader].rank
            for leader, units in members.items()
        }

    def grids(self) -> dict[str, Grid]:
        """The grid of every linear that is rounded."""
        return {name: linear.grid for name, linear in self.linears.items() if linear.grid is not None}

    def with_linears(self, linears: dict[str, LinearPlan]) -> "Plan":
        """The plan with these linears, their parameters added up in the budget."""
        used = sum(linear.parameters for linear in linears.values())
        return self.model_copy(update={"linears": linears, "budget": self.budget.model_copy(update={"used": used})})

    def with_notes(self, notes: Sequence[str]) -> "Plan":
        """The plan with these notes first; notes it already has are not repeated."""
        return self.model_copy(update={"notes": [*(note for note in notes if note not in self.notes), *self.notes]})

    def to_json(self) -> str:
        """The plan as JSON; raises a SlimrankError if it holds NaN or Inf."""
        require_finite(self.model_dump(mode="python"), "The plan")
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan from a JSON file.

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
