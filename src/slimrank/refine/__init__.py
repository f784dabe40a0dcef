"""Refiners: what happens to the factors afterwards. A new one is a file here and a line in REFINERS."""

from slimrank.refine.anchored import Anchored
from slimrank.refine.base import Refiner

REFINERS: dict[str, type[Refiner]] = {"anchored": Anchored}

__all__ = ["REFINERS", "Anchored", "Refiner"]
