"""Allocators choose the rank of every unit under the budget. A new one is a file here and a line in ALLOCATORS."""

from slimrank.allocate.asvd import PerplexityScan
from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.bayes import Bayes
from slimrank.allocate.cpsvd import BlockSimilarity
from slimrank.allocate.dipsvd import BlockImportance
from slimrank.allocate.duo import MeasuredModules
from slimrank.allocate.nats import Nats
from slimrank.allocate.nothing import Nothing
from slimrank.allocate.uniform import Uniform
from slimrank.allocate.v2 import TypeGroups

ALLOCATORS: dict[str, type[Allocator]] = {
    "uniform": Uniform,
    "type_groups": TypeGroups,
    "block_importance": BlockImportance,
    "block_similarity": BlockSimilarity,
    "measured_modules": MeasuredModules,
    "perplexity_scan": PerplexityScan,
    "bayes": Bayes,
    "nats": Nats,
    "nothing": Nothing,
}

__all__ = ["ALLOCATORS", "Allocation", "Allocator", "Nats", "Problem", "Ranks", "Uniform"]
