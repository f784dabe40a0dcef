"""How a layer's outputs follow from the product with its input factor, as data for kernels."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimrank.forms.stored import StoredMatrix


@dataclass(frozen=True)
class Outputs:
    """y = [M [x_K ; z] ; z_C] + b in another order, where z = F x, or F x_rest where some inputs x_K are kept.

    factor: the module that stores F (r, in - kept); None where F is held elsewhere, or where all inputs are kept.
    matrix: M (n, kept + r), or None where there is no such row.
    copies: how many numbers of z are outputs as they are.
    table: (n + 2 copies,) int32: the output that each row of M gives, and each copy, then each copy's place in z; None
        where outputs and copies are as they come.
    bias: b (n + copies,).
    order: (in,) the inputs that are kept, before the rest; None where none is, or all are.
    """

    factor: Any
    matrix: StoredMatrix | None
    copies: int = 0
    table: Tensor | None = None
    bias: Tensor | None = None
    order: Tensor | None = None
    kept: int = 0

    @property
    def size(self) -> int:
        """How many outputs there are."""
        return self.copies + (0 if self.matrix is None else len(self.matrix.numbers))


def table_of(order: Tensor, rank: int, rows: int) -> Tensor:
    """The `table` of outputs [z ; M z][order], z (rank,), M of `rows` rows, each of which is an output once."""
    combined = order >= rank
    targets = order.new_empty(rows)
    targets[order[combined] - rank] = combined.nonzero()[:, 0]
    return torch.cat([targets, (~combined).nonzero()[:, 0], order[~combined]]).to(torch.int32)
