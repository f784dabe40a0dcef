"""From shares of a budget to whole ranks that never overshoot it."""

import math
from collections.abc import Sequence

from slimrank.allocate.base import Problem, Ranks, allowed
from slimrank.errors import UsageError
from slimrank.factorize import Factorizer
from slimrank.run.session import Group


def fit_ranks(problem: Problem, shares: dict[str, float]) -> Ranks:
    """The largest ranks whose cost is within each linear's share (kept / dense numbers), at least 1.

    A share of 1 or more is dense. Where rank 1 costs more than a small matrix's share, the excess is taken back
    from the largest ranks.

    Raises:
        UsageError: if rank 1 everywhere is over the budget.
    """
    return within_budget(problem, {name: rank_at(problem, name, shares[name]) for name in problem.spectrum.linears})


def require_room(keep: float, form: Factorizer, shapes: Sequence[tuple[int, int]]) -> None:
    """Raise a UsageError if rank 1 in linears of these shapes is over the budget."""
    dense, floor = sum(m * n for m, n in shapes), sum(form.cost(shape, 1) for shape in shapes)
    if floor > allowed(keep, dense):
        raise UsageError(
            f"--keep {keep} leaves {allowed(keep, dense)} parameters, and rank 1 in every linear needs {floor}: "
            f"give --keep {math.ceil(1e4 * floor / dense) / 1e4} or more."
        )


def rank_at(problem: Problem, name: str, share: float) -> int | None:
    """The largest rank within a share of the linear's own numbers, at least 1; a share of 1 or more is dense."""
    rows, columns = problem.spectrum.linears[name].shape
    return None if share >= 1 else max(problem.form.rank_for((rows, columns), share * rows * columns + 1e-6), 1)


def used(problem: Problem, ranks: Ranks) -> int:
    """The numbers that the ranks store."""
    return sum(cost(problem, name, rank) for name, rank in ranks.items())


def cost(problem: Problem, name: str, rank: int | None) -> int:
    """The numbers that one linear stores."""
    shape = problem.spectrum.linears[name].shape
    return shape[0] * shape[1] if rank is None else problem.form.cost(shape, rank)


def joint_costs(problem: Problem, group: Group, rank: int) -> list[int]:
    """The numbers that each linear of a group stores, at the group's rank."""
    return problem.form.joint_costs([problem.spectrum.linears[name].shape for name in group], rank)


def within_budget(problem: Problem, ranks: Ranks) -> Ranks:
    """Lower the costliest ranks one by one until the total is within the budget."""
    ranks, spectra = dict(ranks), problem.spectrum.linears
    require_room(problem.keep, problem.form, [s.shape for s in spectra.values()])
    while used(problem, ranks) > problem.budget:
        name = max((n for n, r in ranks.items() if r != 1), key=lambda n: cost(problem, n, ranks[n]))
        rank = ranks[name]
        ranks[name] = (min(spectra[name].shape) if rank is None else rank) - 1
    return ranks
