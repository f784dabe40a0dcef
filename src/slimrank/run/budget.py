"""The one budget of a run: a share of parameters, bytes, or mean bits."""

import torch

from slimrank.errors import UsageError
from slimrank.model.compressible import Compressible
from slimrank.plan import Plan
from slimrank.recipe import Recipe
from slimrank.run.bytes import ByteBudget, Ledger
from slimrank.runtime.memory import parse_size

KEEP = 0.8


def checked_budget(keep: float | None, size: int | str | None, bits: float | None) -> tuple[float, int | None]:
    """The share of parameters, 1 where bytes are the budget, and the bytes, None where `bits` or no bytes are given.

    Raises:
        UsageError: for more than one budget, or one that is none.
    """
    given = [name for name, value in (("keep", keep), ("size", size), ("bits", bits)) if value is not None]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} are both budgets: give one of them.")
    if bits is not None and not 0 < bits < float("inf"):
        raise UsageError(f"--bits {bits} must be above 0: it is the mean number of bits of the model's numbers.")
    if isinstance(size, int) and size < 1:
        raise UsageError(f"--size {size} must be above 0: it is a number of bytes.")
    share = 1.0 if size is not None or bits is not None else KEEP if keep is None else keep
    if not 0 < share <= 1:
        raise UsageError(f"--keep {keep} must be above 0 and at most 1: it is the share of parameters to keep.")
    return share, parse_size(size, "--size") if isinstance(size, str) else size


def budget_of(
    model: Compressible, recipe: Recipe, plan: Plan | None, stored: torch.dtype, size: int | None, bits: float | None
) -> ByteBudget | None:
    """The bytes that a run may spend, by its options or its plan; None where the budget is one of parameters."""
    if plan is not None:
        return None if plan.size is None else ByteBudget(plan.size.allowed, stored, plan.ends)
    if bits is not None:
        size = int(bits * Ledger(model, recipe.form, stored, {}).numbers() / 8)
    if size is None:
        return None
    return ByteBudget(size, stored, {}, recipe.allocate.end_widths)
