"""Allocators: what each linear gets. A new one is a file here and a line in ALLOCATORS."""

from slimrank.allocate.base import Allocation, Allocator, Problem, Ranks
from slimrank.allocate.duo import MeasuredModules
from slimrank.allocate.nats import Nats
from slimrank.allocate.uniform import Uniform

ALLOCATORS: dict[str, type[Allocator]] = {
    "uniform": Uniform,
    "measured_modules": MeasuredModules,
    "nats": Nats,
}

__all__ = ["ALLOCATORS", "Allocation", "Allocator", "Nats", "Problem", "Ranks", "Uniform"]
