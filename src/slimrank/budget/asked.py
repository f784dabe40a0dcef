"""The one budget of a run: a share of parameters, bytes, mean bits, or how many times as fast the model is to be."""

import math
from dataclasses import dataclass

import torch

from slimrank.budget.bench import bench_of
from slimrank.budget.bytes import ByteBudget, Ledger
from slimrank.budget.seconds import TimeBudget
from slimrank.budget.speeds import Decoding, finest
from slimrank.budget.times import timed
from slimrank.errors import UsageError
from slimrank.model.compressible import Compressible
from slimrank.numerics.products import FEW
from slimrank.plan import Plan
from slimrank.recipe import Recipe
from slimrank.runtime.memory import parse_size
from slimrank.store.run import Run
from slimrank.texts.windows import context_length

KEEP = 0.8
TOKENS = 512

RunBudget = ByteBudget | TimeBudget


@dataclass(frozen=True)
class BudgetOptions:
    """keep: the share of parameters, 1 where the budget is another one; size: bytes; bits: of a number, mean.

    speedup: of a call with so many `tokens`, None for TOKENS, or the model's context where that is less.
    """

    keep: float
    size: int | None = None
    bits: float | None = None
    speedup: float | None = None
    tokens: int | None = None

    def fitting(self, recipe: Recipe, device: str) -> Recipe:
        """The recipe, with its refiners as the budget needs them.

        Raises:
            UsageError: if it can't spend bytes or seconds, or can't round where that would be spent on.
        """
        if self.size is not None or self.bits is not None or self.rounds(device):
            return recipe.sized()
        if self.speedup is not None:
            recipe.require_spending()
        return recipe

    def rounds(self, device: str) -> bool:
        """Whether rounded numbers may save time: there are kernels for them on a CPU, for few tokens."""
        return self.speedup is not None and device == "cpu" and (self.tokens or TOKENS) <= FEW


def checked_budget(
    keep: float | None,
    size: int | str | None,
    bits: float | None,
    speedup: float | None = None,
    tokens: int | None = None,
) -> BudgetOptions:
    """The budget that was asked for.

    Raises:
        UsageError: for more than one budget, or one that is none.
    """
    values = {"keep": keep, "size": size, "bits": bits, "speedup": speedup}
    given = [name for name, value in values.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} are both budgets: give one of them.")
    if bits is not None and not 0 < bits < float("inf"):
        raise UsageError(f"--bits {bits} must be above 0: it is the mean number of bits of the model's numbers.")
    if isinstance(size, int) and size < 1:
        raise UsageError(f"--size {size} must be above 0: it is a number of bytes.")
    if speedup is not None and not 1 <= speedup < math.inf:
        raise UsageError(f"--speedup {speedup} must be from 1 on: it is how many times as fast as dense.")
    if tokens is not None and (speedup is None or tokens < 1):
        raise UsageError(
            f"--tokens {tokens} is the number of tokens at once that --speedup is meant for: give both, and from 1 on."
        )
    share = (KEEP if keep is None else keep) if not given or keep is not None else 1.0
    if not 0 < share <= 1:
        raise UsageError(f"--keep {keep} must be above 0 and at most 1: it is the share of parameters to keep.")
    return BudgetOptions(share, parse_size(size, "--size") if isinstance(size, str) else size, bits, speedup, tokens)


def budget_of(
    model: Compressible, recipe: Recipe, plan: Plan | None, stored: torch.dtype, asked: BudgetOptions, run: Run
) -> RunBudget | None:
    """The bytes or seconds that a run may spend, by its options or its plan; None where parameters are the budget.

    Raises:
        UsageError: with the fastest that is possible, if that is slower than asked.
    """
    if plan is not None:
        return None if plan.size is None else ByteBudget(plan.size.allowed, stored, plan.ends)
    if asked.speedup is not None:
        return time_budget(model, recipe, stored, asked.speedup, asked, run)
    size = asked.size
    if asked.bits is not None:
        size = int(asked.bits * Ledger(model, recipe.form, stored, {}).numbers() / 8)
    if size is None:
        return None
    return ByteBudget(size, stored, {}, recipe.allocate.end_widths, Decoding.kept(model, recipe, stored))


def time_budget(
    model: Compressible, recipe: Recipe, stored: torch.dtype, speedup: float, asked: BudgetOptions, run: Run
) -> TimeBudget:
    """The seconds that a run may spend, its layers being timed first."""
    context = context_length(model.decoder.model.config)
    tokens = asked.tokens or min(TOKENS, context or TOKENS)
    if context is not None and tokens > context:
        raise UsageError(f"--tokens {tokens} is beyond the model's context of {context} tokens: give at most that.")
    rounds = asked.rounds(model.decoder.device.type) and recipe.pricing is not None
    grids, widths = (finest(recipe.allocate.pricing), recipe.allocate.end_widths) if rounds else ((), (16,))
    bench = bench_of(model, recipe.form, grids, tokens, stored, widths)
    dtype = str(stored).removeprefix("torch.")
    return TimeBudget(speedup, tokens, dtype, timed(bench, speedup, run), grids, widths)
