"""Products with symmetric results or triangular factors, without the redundant multiplications."""

from collections.abc import Iterator

import torch
from torch import Tensor

PANELS = 8  # more panels compute less twice, but in thinner products


def panels(n: int) -> Iterator[tuple[int, int]]:
    """Yield (start, end) of PANELS parts of n rows."""
    step = max(1, -(-n // PANELS))
    yield from ((start, min(start + step, n)) for start in range(0, n, step))


def mirrored(lower: Tensor) -> Tensor:
    """Complete a symmetric matrix (n, n), given in its panels on and below the diagonal, in place."""
    for start, end in panels(len(lower)):
        square = lower[start:end, start:end]
        square.copy_((square + square.T) / 2)
        lower[:start, start:end] = lower[start:end, :start].T
    return lower


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b (n, n) for a (n, k) and b (k, n) whose product is symmetric: 9/16 of the multiplications."""
    result = a.new_empty(len(a), len(a))
    for start, end in panels(len(a)):
        result[start:end, :end] = a[start:end] @ b[:, :end]
    return mirrored(result)


def congruence(gram: Tensor, lower: Tensor) -> Tensor:
    """L^T M L for a symmetric M and a lower triangular L, both (n, n): 0.7 n^3 multiplications instead of 2 n^3."""
    half = torch.empty_like(gram)
    for start, end in panels(len(gram)):
        half[start:, start:end] = gram[start:, start:] @ lower[start:, start:end]
    result = torch.empty_like(gram)
    for start, end in panels(len(gram)):
        result[start:end, :end] = lower[start:, start:end].T @ half[start:, :end]
    return mirrored(result)
