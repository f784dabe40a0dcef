"""One input factor for the weights of all experts of a layer: its directions, and what every rank of them costs.

The experts' weights W_e (m, n) become C_e V with one V (r, n), at the error sum_e |L_e^T (W_e - C_e V) R_e|_F^2, each
under its own Grams G_e = L_e L_e^T and H_e = R_e R_e^T. No decomposition gives the best V. Here V is the best one where
each H_e is taken as its share, by trace, of the pooled Gram H = sum_e H_e: with H = L L^T and
L^T (sum_e tr(H_e) W_e^T G_e W_e) L = U S U^T, the rows of V are the leading columns of L^-T U. Given V, each C_e is the
best one under its own Grams, so that the error at every rank is exact for these directions:

    C_e = W_e H_e V^T (V H_e V^T)^-1.

An output factor, W_e = U D_e, is the same for the transposed weights, with the Grams in each other's places, and those
of the outputs pooled as the tokens are: H = sum_e tr(H_e) G_e, where G_e is a mean over the expert's own tokens.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.numerics.damped import factor_
from slimrank.numerics.grams import Blocks, Grams, Root, times

LEAST = 1e-12


@dataclass(frozen=True)
class Part:
    """One expert: its weight W (m, n), float64, its Grams, and how much its right Gram weighs in the pooled one."""

    weight: Tensor
    left: Tensor | None
    right: Tensor | None
    weighs: float = 1.0

    @classmethod
    def of(cls, weight: Tensor, grams: Grams, side: str) -> "Part":
        """The expert's part of a shared factor on the `side` "input" or "output" (then transposed)."""
        left, right = grams.left, grams.right
        assert not isinstance(left, Blocks), "the Gram of one expert's outputs"
        if side == "input":
            return cls(weight.double(), left, right)
        return cls(weight.double().T, right, left, trace(right, weight.shape[1]))


Parts = Callable[[], Iterator[Part]]
"""Gives the experts one after the other, at every call, so that one is in memory."""


def trace(gram: Tensor | None, width: int) -> float:
    """tr(H) of a Gram, its diagonal, or None for the identity."""
    if gram is None:
        return float(width)
    return (gram if gram.ndim == 1 else gram.diagonal()).sum().item()


def directions(parts: Parts) -> Tensor:
    """V (n, n), float64: its first r rows are the shared factor of rank r, each of norm 1, or 0 outside H's support."""
    pooled, inner = torch.zeros(()), torch.zeros(())
    for part in parts():
        width = part.weight.shape[1]
        own = torch.ones(width).to(part.weight) if part.right is None else part.right
        pooled = pooled.to(own) + part.weighs * (own if own.ndim == 2 else own.diag())
        inner = inner.to(own) + trace(own, width) * (part.weight.T @ times(part.left, part.weight))
    root = Root.of(pooled)
    square = root.whiten(root.whiten(inner).T)
    basis = torch.linalg.eigh((square + square.T) / 2).eigenvectors.flip(1)
    rows = root.unwhiten(basis).T
    sizes = rows.norm(dim=1, keepdim=True)
    return torch.where(sizes > LEAST * sizes.max(), rows / sizes.clamp_min(torch.finfo().tiny), 0)


def saved(part: Part, rows: Tensor) -> Tensor:
    """How much of one expert's error each direction of V (q, n) saves beside those before it, (q,) float64."""
    factor, product = _solvable(part, rows)
    z = torch.linalg.solve_triangular(factor, product.T, upper=False)  # z z^T is that of W R on orthonormal directions
    return (z.T * times(part.left, z.T)).sum(0)


def own_factor(part: Part, rows: Tensor) -> Tensor:
    """C_e (m, r) for V (r, n)."""
    factor, product = _solvable(part, rows)
    return torch.cholesky_solve(product.T, factor).T


def values(parts: Parts, rows: Tensor) -> Tensor:
    """(q,) float64, whose squares sum beyond r to the error of all experts at rank r (see spectrum.curve)."""
    total = rows.new_zeros(len(rows))
    for part in parts():
        total += saved(part, rows)
    return total.clamp_min(0).sqrt()


def _solvable(part: Part, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The Cholesky factor of V H V^T, damped so far that there is one, and W H V^T (m, r)."""
    spread = times(part.right, rows.T)
    square = rows @ spread
    return factor_(square, LEAST), part.weight @ spread
