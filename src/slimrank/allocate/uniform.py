"""The same share for every linear."""

from typing import Literal

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.budget import fit_ranks


class Uniform(Allocator):
    """Every linear keeps the share that was asked for, rounded down to a whole rank."""

    name: Literal["uniform"] = "uniform"

    def allocate(self, problem: Problem) -> Allocation:
        """r = floor(k m n / (m + n)) for low-rank factors."""
        return Allocation(fit_ranks(problem, dict.fromkeys(problem.spectrum.linears, problem.keep)))
