"""Nothing is cut: for recipes that only round."""

from typing import ClassVar, Literal

from slimrank.allocate.base import Allocation, Allocator, Problem


class Nothing(Allocator):
    """Every linear stays dense, whatever the share `keep`."""

    name: Literal["nothing"] = "nothing"
    cuts: ClassVar[bool] = False

    def allocate(self, problem: Problem) -> Allocation:
        """No ranks."""
        return Allocation(dict.fromkeys(problem.curves))
