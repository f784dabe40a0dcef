"""Refiners: what happens to the factors afterwards. A new one is a file here and a line in REFINERS."""

from slimrank.refine.base import Refiner

REFINERS: dict[str, type[Refiner]] = {}

__all__ = ["REFINERS", "Refiner"]
