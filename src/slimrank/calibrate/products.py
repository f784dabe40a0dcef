"""Products of many tokens, summed in float64."""

import torch
from torch import Tensor

PANEL = 1024  # rows of a Gram at a time: the float32 product takes PANEL x n numbers, and half the square is spared


def product(a: Tensor, b: Tensor) -> Tensor:
    """a^T b (m, n) in float32 for a (tokens, m) and b (tokens, n) of one dtype.

    Half precision on CUDA is multiplied as it is, summed in float32: the products of two bfloat16 numbers are exact
    there.
    """
    if a.is_cuda and a.dtype in (torch.bfloat16, torch.float16) and hasattr(torch.ops.aten.mm, "dtype"):
        return torch.mm(a.T, b, out_dtype=torch.float32)
    return a.float().T @ b.float()


def add_gram(total: Tensor, x: Tensor) -> None:
    """Add x^T x (n, n) for x (tokens, n) to a float64 total, products in float32."""
    if not (x.is_cuda and x.dtype != torch.float64):
        x = x.float()
    for start in range(0, x.shape[1], PANEL):
        end = min(start + PANEL, x.shape[1])
        panel = product(x[:, start:end], x[:, :end])
        total[start:end, :end] += panel
        total[:start, start:end] += panel[:, :start].T
