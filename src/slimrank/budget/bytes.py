"""The bytes of a checkpoint's weights, from what every linear will be stored as."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.allocate import Allocation, Problem
from slimrank.allocate.bytes import Bytes
from slimrank.allocate.candidates import Candidates
from slimrank.allocate.nats import spend_on
from slimrank.budget.ends import best_of_widths
from slimrank.budget.speeds import Decoding
from slimrank.checkpoint.size import Spec, file_bytes
from slimrank.errors import UsageError
from slimrank.factorize import Factorizer
from slimrank.factorize.rounded import entry_of
from slimrank.factorize.shared import form_for
from slimrank.forms import form_of
from slimrank.forms.joint import Joint
from slimrank.model.compressible import Compressible
from slimrank.model.units import Unit
from slimrank.numerics.packing import row_bytes
from slimrank.plan import LinearPlan, Size
from slimrank.recipe import Recipe
from slimrank.refine.ends import end_grid
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Pricing
from slimrank.spectrum.spectra import Spectra

Specs = dict[str, Spec]


TRIES = 4  # sweeps that spend what the header turned out not to take


@dataclass(frozen=True)
class ByteBudget:
    """Bytes that the checkpoint's weights may take; stored: the dtype of its floats.

    ends: bits of embedding and head by name, where these are rounded; widths: those that they may have instead, where
    they are yet to be chosen, 16 to be left as they are; decoding: how fast plans will be, where layers were timed.
    """

    allowed: int
    stored: torch.dtype
    ends: dict[str, int]
    widths: tuple[int, ...] = ()
    decoding: Decoding | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """What a run's results depend on."""
        return {"bytes": self.allowed}

    def pricing(self, recipe: Recipe) -> Pricing | None:
        """What rounding has to be priced: all that the recipe offers."""
        return recipe.pricing

    def ledger(self, model: Compressible, form: Factorizer) -> "Ledger":
        """What counts the checkpoint's bytes."""
        return Ledger(model, form, self.stored, {name: end_grid(bits) for name, bits in self.ends.items()})

    def spend(self, problem: Problem, recipe: Recipe) -> "Spent":
        """What loses least within the budget; see the function `spend`."""
        return spend(problem, recipe, self)


@dataclass(frozen=True)
class Ledger:
    """Counts what a checkpoint of this model takes; stored, ends: as of ByteBudget, ends by their grids."""

    model: Compressible
    form: Factorizer
    stored: torch.dtype
    ends: Mapping[str, Grid]

    def rest(self) -> Specs:
        """The tensors outside the linears, tied ones once."""
        model = self.model.decoder.model
        rounded: Specs = {}
        inside = {id(tensor) for linear in self.model.linears.values() for tensor in linear.parameters()}
        for name, grid in self.ends.items():
            rounded |= self._end(name, grid)
            inside |= {id(self.model.ends[name].weight)}
        parameters = {name: tensor for name, tensor in model.named_parameters() if id(tensor) not in inside}
        saved = model.state_dict().keys()
        buffers = {name: tensor for name, tensor in model.named_buffers() if name in saved}
        return rounded | {name: self._spec(tensor) for name, tensor in {**parameters, **buffers}.items()}

    def _end(self, name: str, grid: Grid) -> Specs:
        end: Any = self.model.ends[name]
        rows, columns = end.weight.shape
        inner = "table" if isinstance(end, nn.Embedding) else "whole"
        return {
            f"{name}.weight": Spec((0,), self.stored),
            f"{name}.{inner}.weight": Spec((rows, row_bytes(columns, grid.bits)), torch.uint8),
            f"{name}.{inner}.scale": Spec((rows, grid.groups(columns)), self.stored),
        }

    def of(self, unit: Unit, rank: int | None, grid: Grid | None) -> Specs:
        """The tensors of a unit's linears, biases included."""
        dense = {name: self.model.linears[name] for name in unit.names}
        if rank is None and grid is None:
            return {
                f"{name}.{key}": self._spec(tensor)
                for name, module in dense.items()
                for key, tensor in module.named_parameters()
            }
        if rank == 0:
            entries: list[dict[str, Any]] = [{"form": "low_rank", "rank": 0} for _ in dense]
        elif grid is None:
            entries = dealt(form_for(self.form, unit).entries(unit.shapes, rank or 1), unit)
        else:
            entries = [entry_of(grid, rank)]
        specs: Specs = {}
        for (name, module), entry in zip(dense.items(), entries, strict=True):
            shell = form_of(name, entry, 0).shell(module, entry, "meta", self.stored)
            specs |= {f"{name}.{key}": Spec(tuple(t.shape), t.dtype) for key, t in shell.state_dict().items()}
        return specs

    def total(self, ranks: Mapping[Unit, int | None], grids: Mapping[Unit, Grid]) -> int:
        """The bytes of the whole file."""
        specs = self.rest()
        for unit, rank in ranks.items():
            specs |= self.of(unit, rank, grids.get(unit))
        return file_bytes(specs)

    def counted(
        self, plans: dict[str, LinearPlan], ranks: Mapping[Unit, int | None], grids: Mapping[Unit, Grid]
    ) -> dict[str, LinearPlan]:
        """The plans with the bytes of every linear."""
        found = dict(plans)
        for unit, rank in ranks.items():
            specs = self.of(unit, rank, grids.get(unit))
            for name in unit.names:
                own = sum(spec.bytes for key, spec in specs.items() if key.startswith(f"{name}."))
                found[name] = found[name].model_copy(update={"bytes": own})
        return found

    def dense(self) -> int:
        """The bytes of the dense model's file."""
        plain = Ledger(self.model, self.form, self.stored, {})
        return plain.total(dict.fromkeys(self.model.units.values()), {})

    def numbers(self) -> int:
        """How many numbers the dense model has, tied ones once."""
        return sum(tensor.numel() for tensor in self.model.decoder.model.parameters())

    def _spec(self, tensor: Tensor) -> Spec:
        computed = next(iter(self.model.linears.values())).weight.dtype
        return Spec(tuple(tensor.shape), self.stored if tensor.dtype == computed else tensor.dtype)


def dealt(entries: list[dict[str, Any]], unit: Unit) -> list[dict[str, Any]]:
    """The entries of a unit; members that share pivots have them dealt out, since the plan does not say how."""
    if entries[0]["form"] != Joint.form:
        return entries
    left, first, found = entries[0]["rank"], 0, []
    for entry, (rows, _) in zip(entries, unit.shapes, strict=True):
        own = min(left, rows)
        found.append({**entry, "own": own, "first": first})
        left, first = left - own, first + own
    return found


@dataclass(frozen=True)
class Spent:
    """An allocation, the size of its checkpoint, the bits of its ends by name, and the loss expected of all.

    points: bytes and the speed, 0 where that is not known, of the best plan that takes them, and its loss.
    """

    allocation: Allocation
    size: Size
    ends: dict[str, int]
    loss: float
    ledger: Ledger
    points: list[tuple[tuple[int, float], float]]

    @property
    def recorded(self) -> dict[str, Any]:
        """What the plan says of it."""
        return {"size": self.size, "ends": self.ends}

    def counted(self, plans: dict[str, LinearPlan]) -> dict[str, LinearPlan]:
        """The plans with the bytes of every linear."""
        return self.ledger.counted(plans, self.allocation.ranks, self.allocation.grids)


def spend(problem: Problem, recipe: Recipe, budget: ByteBudget) -> Spent:
    """What loses least within the budget: the best of the widths that embedding and head may have.

    Raises:
        UsageError: with the least that is possible, if that is more.
    """
    candidates = recipe.allocate.candidates(problem, Bytes(recipe.form, budget.stored.itemsize))

    def spent(ends: dict[str, int], loss: float) -> Spent:
        own = replace(budget, ends=ends)
        return spend_with(problem.spectra, candidates, own, own.ledger(problem.spectra.model, recipe.form), loss)

    best, points = best_of_widths(problem, budget.widths, spent)
    frontier = [(size, loss) for (size, _), loss in points]
    speeds = [speed for (_, speed), _ in points] if budget.decoding else []
    return replace(best, size=best.size.model_copy(update={"frontier": frontier, "speeds": speeds}))


def spend_with(spectra: Spectra, candidates: Candidates, budget: ByteBudget, ledger: Ledger, of_ends: float) -> Spent:
    """What loses least with the ends as they are given; of_ends: what these lose.

    The checkpoint takes as many bytes as are allowed, or a few less.
    """
    rest, best = file_bytes(ledger.rest()), None
    left = budget.allowed - rest
    if left < candidates.least:
        raise too_small(candidates.least + rest, budget.allowed)
    for _ in range(TRIES):
        allocation = spend_on(candidates, left)
        used = ledger.total(allocation.ranks, allocation.grids)
        if used <= budget.allowed and (best is None or used > best[1]):
            best = allocation, used
        if used == budget.allowed:
            break
        left += budget.allowed - used
    assert best is not None, "costs are counted too high, so the first sweep fits"
    allocation, used = best
    grids, bits = allocation.grids, 8 * used / ledger.numbers()
    loss = sum(spectra.curve(unit).stored(rank, grids.get(unit)) for unit, rank in allocation.ranks.items())
    size = Size(dense=ledger.dense(), allowed=budget.allowed, used=used, bits=bits, ends=of_ends)
    known = budget.decoding
    points = [
        ((round(point.cost) + rest, known.speedup(point.stored, budget.ends) if known else 0.0), point.loss + of_ends)
        for point in candidates.frontier
    ]
    return Spent(allocation, size, budget.ends, loss + of_ends, ledger, points)


def too_small(least: float, allowed: int) -> UsageError:
    """The error where a checkpoint has `least` bytes at least and fewer are allowed."""
    return UsageError(
        f"The smallest checkpoint that this recipe can make has {least:.0f} bytes, and {allowed} are allowed: raise "
        "--size or --bits, or allow fewer bits by allocate.widths."
    )
