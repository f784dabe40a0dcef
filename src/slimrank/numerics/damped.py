"""Damped Cholesky factorisation of a Gram, and solving with it."""

import torch
from torch import Tensor

from slimrank.errors import SlimrankError


def factor_(gram: Tensor, damping: float) -> Tensor:
    """Overwrite H (n, n) by the lower Cholesky factor of H + damping tr(H)/n I (damping I for H = 0); returns it.

    The damping is raised tenfold until the factor exists. Raises a SlimrankError if none up to 1 suffices.
    """
    mean, most = gram.diagonal().mean(), max(1.0, damping)
    while damping <= most:
        gram.diagonal().add_(damping * mean if mean else damping)
        factor, failed = torch.linalg.cholesky_ex(gram)
        if not failed:
            return gram.copy_(factor)
        del factor
        damping = max(10 * damping, 1e-10)
    raise SlimrankError(
        "Refinement met NaN or Inf in the compressed model's inputs: try --dtype float32 or raise --keep."
    )


def solved(x: Tensor, factor: Tensor) -> Tensor:
    """X H^-1 for X (m, n) and the lower factor of H (n, n)."""
    # cholesky_solve would copy the factor
    half = torch.linalg.solve_triangular(factor.T, x, upper=True, left=False)
    return torch.linalg.solve_triangular(factor, half, upper=False, left=False)
