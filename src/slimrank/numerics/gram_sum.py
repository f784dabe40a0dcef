"""Grams of many tokens, multiplied in float32 and summed in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.numerics.symmetric import length, pack, unpack, views

PANEL = 1024  # rows of a Gram at a time: limits the float32 product to PANEL x n and skips half of the Gram


def product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b (m, n) in float32 for a (tokens, m) and b (tokens, n) of one dtype.

    On CUDA half precision is not cast: its products are exact in float32, in which they are summed.
    """
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16) and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a.T, b, out_dtype=torch.float32)
    return a.float().T @ b.float()


@dataclass
class GramSum:
    """A Gram (n, n), packed in half the space (see numerics.symmetric); device: of the result of `full`."""

    packed: Tensor
    width: int
    device: torch.device

    @classmethod
    def empty(cls, width: int, device: torch.device) -> "GramSum":
        """A zero Gram in float64."""
        return cls(torch.zeros(length(width), dtype=torch.float64, device=device), width, device)

    @classmethod
    def of(cls, gram: Tensor) -> "GramSum":
        """The GramSum of a Gram (n, n)."""
        return cls(pack(gram.double()), len(gram), gram.device)

    def add(self, x: Tensor) -> None:
        """Add x^T x for x (tokens, n), multiplied in float32."""
        if not (x.is_cuda and x.dtype != torch.float64):
            x = x.float()
        shared, corner, diagonal = views(self.packed, self.width)
        rest, half = corner.shape
        head, tail = x[:, :half], x[:, half:]
        for start in range(0, half, PANEL):
            end = min(start + PANEL, half)
            shared[start:end, :end] += product(head[:, start:end], head[:, :end]).tril_(start)
        for start in range(0, rest, PANEL):
            end = min(start + PANEL, rest)
            corner[start:end] += product(tail[:, start:end], head)
            panel = product(tail[:, start:end], tail[:, start:])
            diagonal[start:end] += panel.diagonal()
            shared[start:end, start:rest] += panel.triu_(1)

    def full(self) -> Tensor:
        """The Gram (n, n) in float64, a new tensor."""
        return unpack(self.packed.to(self.device), self.width)
