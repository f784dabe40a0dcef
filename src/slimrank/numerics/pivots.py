"""Pivot rows of a low-rank matrix, whose linear combinations are the other rows."""

import numpy as np
import torch
from scipy.linalg import qr, solve_triangular
from torch import Tensor

from slimrank.numerics.threads import one_thread

LARGEST = 1.05  # bound of |C|, so that rounding errors of the pivots are not amplified


def pivot_rows(left: Tensor) -> tuple[Tensor, Tensor]:
    """Pivot rows P of left (out, r), and C with left[N] = C left[P], |C| at most LARGEST, in float64.

    Returns the row order (out,), P before N and each ascending, and C (out - r, r). If left has rank below r, the
    surplus pivots have zero coefficients.
    """
    rank, left = left.shape[1], left.detach().double()
    with one_thread(left):
        rows, combinations = by_swaps(left) or by_qr(left)
    pivots, others = rows[:rank].argsort(), rows[rank:].argsort()
    return torch.cat([rows[:rank][pivots], rows[rank:][others]]), combinations[others][:, pivots]


def by_swaps(left: Tensor) -> tuple[Tensor, Tensor] | None:
    """Rows (out,), the pivots first, and C; None if left (out, r) has rank below r.

    Starts from the pivots of an LU factorisation. While a coefficient is above LARGEST, its row and pivot are swapped,
    which multiplies |det left[P]| by it (maxvol, Goreinov et al., 2010).
    """
    rank = left.shape[1]
    factors, swaps, failed = torch.linalg.lu_factor_ex(left)
    diagonal = factors.diagonal().abs()
    if failed or not diagonal.min() > diagonal.max() * max(left.shape) * torch.finfo(left.dtype).eps:
        return None
    rows = torch.from_numpy(_permutation(swaps.cpu().numpy(), len(left))).to(left.device)
    lower = torch.linalg.solve_triangular(
        factors[:rank], factors[rank:], upper=False, left=False, unitriangular=True
    ).contiguous()
    while len(lower):
        largest, other = torch.linalg.vector_norm(lower, torch.inf, dim=1).max(0)
        if not largest > LARGEST:
            break
        row = lower[other]
        pivot = row.abs().argmax()
        column, step = lower[:, pivot] / row[pivot], row.clone()
        column[other] += 1 / row[pivot]
        step[pivot] -= 1
        lower.addr_(column, step, alpha=-1)
        swapped = torch.stack([pivot, rank + other])
        rows[swapped] = rows[swapped.flip(0)]
    return rows, lower


def by_qr(left: Tensor) -> tuple[Tensor, Tensor]:
    """As by_swaps, for any rank, by column-pivoted QR of the transpose; |C| is not bounded, but rarely above 1.5."""
    rank = left.shape[1]
    triangle, order = qr(left.cpu().numpy().T, mode="r", pivoting=True)
    diagonal = np.abs(np.diag(triangle))
    sound = int((diagonal > diagonal[0] * max(left.shape) * np.finfo(np.float64).eps).sum())
    combinations = np.zeros((rank, left.shape[0] - rank))
    combinations[:sound] = solve_triangular(triangle[:sound, :sound], triangle[:sound, rank:])
    rows = torch.from_numpy(order.astype(np.int64))
    return rows.to(left.device), torch.from_numpy(combinations.T.copy()).to(left.device)


def _permutation(swaps: np.ndarray, count: int) -> np.ndarray:
    """The order of `count` rows after LAPACK's row interchanges, which count from 1."""
    rows = np.arange(count)
    for row, other in enumerate(swaps - 1):
        rows[[row, other]] = rows[[other, row]]
    return rows
