"""Where a parameter of the dense model is, in the model and in the checkpoint's files."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slimrank.store.source import Source


@dataclass(frozen=True)
class Slot:
    """A parameter of the dense model: its modules and names (several if it is tied) and its place in the source.

    keys: of the tensors that it is made of, whose rows follow each other; index: where it is one of those that each of
    these tensors stacks; transposed: the source has it (in, out).
    """

    places: tuple[tuple[nn.Module, str], ...]
    names: tuple[str, ...]
    keys: tuple[str, ...]
    index: int | None = None
    transposed: bool = False

    def read(self, source: Source) -> Tensor:
        """The tensor, in the file's dtype; mapped where it is in the file as it is."""
        if self.index is None:
            parts = [source.get(key) for key in self.keys]
        else:
            parts = [source.get(key)[self.index] for key in self.keys]
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        return tensor.T if self.transposed else tensor

    def numel(self, source: Source) -> int:
        """How many numbers it has."""
        stacked = self.index is not None
        return sum(math.prod(source.shape(key)[stacked:]) for key in self.keys)
