"""Where a run's weights, moments and finished pieces live: in memory, or on disk a block at a time."""

from slimrank.store.disk_weights import DiskWeights
from slimrank.store.pieces import DiskPieces, MemoryPieces, Pieces
from slimrank.store.weights import Weights

__all__ = ["DiskPieces", "DiskWeights", "MemoryPieces", "Pieces", "Weights"]
