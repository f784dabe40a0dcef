"""From shares of a budget to whole ranks that never overshoot it."""

import math

from slimrank.allocate.base import Problem, Ranks
from slimrank.errors import UsageError


def fit_ranks(problem: Problem, shares: dict[str, float]) -> Ranks:
    """The largest ranks whose cost is within each linear's share (kept / dense numbers), at least 1.

    A share of 1 or more is dense. Where rank 1 costs more than a small matrix's share, the excess is taken back
    from the largest ranks.

    Raises:
        UsageError: if rank 1 everywhere is over the budget.
    """
    spectra, form = problem.spectrum.linears, problem.form
    ranks: Ranks = {}
    for name, spectrum in spectra.items():
        rows, columns = spectrum.shape
        rank = form.rank_for(spectrum.shape, shares[name] * rows * columns + 1e-6)
        ranks[name] = None if shares[name] >= 1 else max(rank, 1)
    return within_budget(problem, ranks)


def used(problem: Problem, ranks: Ranks) -> int:
    """The numbers that the ranks store."""
    return sum(cost(problem, name, rank) for name, rank in ranks.items())


def cost(problem: Problem, name: str, rank: int | None) -> int:
    """The numbers that one linear stores."""
    shape = problem.spectrum.linears[name].shape
    return shape[0] * shape[1] if rank is None else problem.form.cost(shape, rank)


def within_budget(problem: Problem, ranks: Ranks) -> Ranks:
    """Lower the costliest ranks one by one until the total is within the budget."""
    ranks, spectra = dict(ranks), problem.spectrum.linears
    floor = sum(problem.form.cost(s.shape, 1) for s in spectra.values())
    if floor > problem.budget:
        raise UsageError(
            f"--keep {problem.keep} leaves {problem.budget} parameters, and rank 1 in every linear needs {floor}: "
            f"give --keep {math.ceil(1e4 * floor / problem.dense) / 1e4} or more."
        )
    while used(problem, ranks) > problem.budget:
        name = max((n for n, r in ranks.items() if r != 1), key=lambda n: cost(problem, n, ranks[n]))
        rank = ranks[name]
        ranks[name] = (min(spectra[name].shape) if rank is None else rank) - 1
    return ranks
