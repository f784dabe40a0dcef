"""Uniform allocation: the same share for every linear."""

from typing import Literal

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.budget import same_share


class Uniform(Allocator):
    """Every linear keeps the share `keep`, rounded down to a whole rank."""

    name: Literal["uniform"] = "uniform"

    def allocate(self, problem: Problem) -> Allocation:
        """r = floor(k m n / (m + n)) for low-rank factors."""
        return Allocation(same_share(problem))
