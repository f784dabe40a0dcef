"""Symmetric matrices packed in half the space."""

import torch
from torch import Tensor


def length(n: int) -> int:
    """The length of a packed (n, n) matrix, about n^2 / 2."""
    half = (n + 1) // 2
    return half * half + (n - half) * (half + 1)


def views(packed: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The parts of a packed (n, n) matrix [[A, C^T], [C, B]], half = (n + 1) // 2, as views.

    A's lower triangle with B's strict upper one in a square (half, half); C (n - half, half); B's diagonal.
    """
    half = (n + 1) // 2
    rest = n - half
    shared, corner, diagonal = packed.split([half * half, rest * half, rest])
    return shared.view(half, half), corner.view(rest, half), diagonal


def pack(gram: Tensor) -> Tensor:
    """Pack a symmetric matrix (n, n) into a vector (length(n),)."""
    packed = gram.new_empty(length(len(gram)))
    shared, corner, diagonal = views(packed, len(gram))
    rest, half = corner.shape
    shared.copy_(gram[:half, :half].tril())
    shared[:rest, :rest] += gram[half:, half:].triu(1)
    corner.copy_(gram[half:, :half])
    diagonal.copy_(gram[half:, half:].diagonal())
    return packed


def unpack(packed: Tensor, n: int) -> Tensor:
    """Unpack a matrix (n, n) in float64."""
    shared, corner, diagonal = views(packed, n)
    rest, half = corner.shape
    gram = torch.empty(n, n, dtype=torch.float64, device=packed.device)
    _mirror(gram[:half, :half].copy_(shared).tril_())
    gram[half:, :half] = corner
    gram[:half, half:] = corner.T
    _mirror(gram[half:, half:].copy_(shared[:rest, :rest].T).tril_(-1))
    gram[half:, half:].diagonal().copy_(diagonal)
    return gram


def _mirror(lower: Tensor, panel: int = 1024) -> None:
    """Copy the lower triangle to the upper one, which is zero, in place."""
    for start in range(0, len(lower), panel):
        rows = lower[start : start + panel]
        lower[:start, start : start + panel] = rows[:, :start].T
        square = rows[:, start : start + panel]
        square += square.tril(-1).T
