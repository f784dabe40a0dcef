"""Symmetric matrices in half the space: two blocks of a quarter each instead of the full square."""

import torch
from torch import Tensor


def pack(gram: Tensor) -> Tensor:
    """(n, n) symmetric to a vector of about n^2 / 2 in float32; the leading and trailing blocks share one square.

    Of [[A, C^T], [C, B]], C is kept whole, and A's lower triangle with B's strict upper one.
    """
    n = len(gram)
    half = (n + 1) // 2
    gram = gram.detach().float()
    shared = gram[:half, :half].tril()
    shared[: n - half, : n - half].add_(gram[half:, half:].tril(-1).T)
    diagonal = gram.diagonal()[half:]
    return torch.cat([shared.flatten(), gram[half:, :half].flatten(), diagonal])


def unpack(packed: Tensor, n: int) -> Tensor:
    """The inverse of pack, (n, n) in float64."""
    half = (n + 1) // 2
    rest = n - half
    shared, corner, diagonal = packed.split([half * half, rest * half, rest])
    shared, corner = shared.view(half, half), corner.view(rest, half)
    gram = torch.empty(n, n, dtype=torch.float64, device=packed.device)
    gram[:half, :half] = shared.tril()
    gram[:half, :half] += shared.tril(-1).T
    gram[half:, :half] = corner
    gram[:half, half:] = corner.T
    upper = shared[:rest, :rest].triu(1)
    gram[half:, half:] = upper
    gram[half:, half:] += upper.T
    gram[half:, half:].diagonal().copy_(diagonal)
    return gram
