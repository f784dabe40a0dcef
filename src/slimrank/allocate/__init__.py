"""Allocators: what each linear gets. A new one is a file here and a line in ALLOCATORS."""

from slimrank.allocate.asvd import PerplexityScan
from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.bayes import Bayes
from slimrank.allocate.duo import MeasuredModules
from slimrank.allocate.uniform import Uniform

ALLOCATORS: dict[str, type[Allocator]] = {
    "uniform": Uniform,
    "measured_modules": MeasuredModules,
    "perplexity_scan": PerplexityScan,
    "bayes": Bayes,
}

__all__ = ["ALLOCATORS", "Allocation", "Allocator", "Problem", "Ranks", "Uniform"]
