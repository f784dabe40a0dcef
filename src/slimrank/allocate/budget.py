"""From shares of parameters to whole ranks within the budget."""

import math
from collections.abc import Mapping, Sequence

from slimrank.allocate.base import Problem, Ranks, allowed
from slimrank.errors import UsageError
from slimrank.factorize import Factorizer
from slimrank.model.units import Shape, Unit


def fit_ranks(problem: Problem, shares: Mapping[Unit, float]) -> Ranks:
    """The largest rank within each linear's share (kept / dense parameters), at least 1; a share >= 1 is dense.

    Where rank 1 costs more than a small matrix's share, the excess is taken back from the largest ranks.

    Raises:
        UsageError: if rank 1 everywhere is over the budget.
    """
    return within_budget(problem, {unit: rank_at(problem, unit, shares[unit]) for unit in problem.curves})


def same_share(problem: Problem) -> Ranks:
    """The ranks where every linear keeps the share `keep`."""
    return fit_ranks(problem, dict.fromkeys(problem.curves, problem.keep))


def require_room(keep: float, form: Factorizer, shapes: Sequence[Shape]) -> None:
    """Raise a UsageError if rank 1 in linears of these shapes is over the budget."""
    dense, floor = sum(m * n for m, n in shapes), sum(form.cost([shape], 1) for shape in shapes)
    if floor > allowed(keep, dense):
        raise UsageError(
            f"--keep {keep} leaves {allowed(keep, dense)} parameters, and rank 1 in every linear needs {floor}: "
            f"give --keep {math.ceil(1e4 * floor / dense) / 1e4} or more."
        )


def rank_at(problem: Problem, unit: Unit, share: float) -> int | None:
    """The largest rank within a share of the linear's dense parameters, at least 1; None (dense) for a share >= 1."""
    return None if share >= 1 else max(problem.rank_within(unit, share), 1)


def used(problem: Problem, ranks: Ranks) -> int:
    """Parameters that the units store at these ranks."""
    return sum(problem.cost(unit, rank) for unit, rank in ranks.items())


def within_budget(problem: Problem, ranks: Ranks) -> Ranks:
    """Lower the costliest ranks one by one until the total is within the budget."""
    ranks = dict(ranks)
    require_room(problem.keep, problem.form, [unit.shape for unit in problem.curves])
    while used(problem, ranks) > problem.budget:
        unit = max(
            (unit for unit, rank in ranks.items() if rank != 1), key=lambda unit: problem.cost(unit, ranks[unit])
        )
        rank = ranks[unit]
        ranks[unit] = (unit.full_rank if rank is None else rank) - 1
    return ranks
