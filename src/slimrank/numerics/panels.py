"""Products that are known to be symmetric or triangular, of which only the part that is needed is computed."""

from collections.abc import Iterator

import torch
from torch import Tensor

PANELS = 8  # the more there are, the less is computed twice, and the thinner the products


def panels(n: int) -> Iterator[tuple[int, int]]:
    """Where each of PANELS parts of n rows begins and ends."""
    step = max(1, -(-n // PANELS))
    yield from ((start, min(start + step, n)) for start in range(0, n, step))


def mirrored(lower: Tensor) -> Tensor:
    """The symmetric matrix (n, n) whose panels at and left of the diagonal hold what `lower` does, in place."""
    for start, end in panels(len(lower)):
        square = lower[start:end, start:end]
        square.copy_((square + square.T) / 2)
        lower[:start, start:end] = lower[start:end, :start].T
    return lower


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b (n, n) for a (n, k) and b (k, n) whose product is symmetric: 9/16 of the multiplications."""
    made = a.new_empty(len(a), len(a))
    for start, end in panels(len(a)):
        made[start:end, :end] = a[start:end] @ b[:, :end]
    return mirrored(made)


def congruence(gram: Tensor, lower: Tensor) -> Tensor:
    """L^T M L for a symmetric M and a lower triangular L, both (n, n): 0.7 n^3 multiplications instead of 2 n^3."""
    half = torch.empty_like(gram)
    for start, end in panels(len(gram)):
        half[start:, start:end] = gram[start:, start:] @ lower[start:, start:end]
    made = torch.empty_like(gram)
    for start, end in panels(len(gram)):
        made[start:end, :end] = lower[start:, start:end].T @ half[start:, :end]
    return mirrored(made)
