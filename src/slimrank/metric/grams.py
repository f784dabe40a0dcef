"""The pair (L, R) of a weighted error |L^T (W - W') R|_F, held as the Grams L L^T and R R^T."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SUPPORT = 1e-12  # eigenvalues below this share of the largest are rounding


Left = Tensor | tuple[Tensor, ...] | None


@dataclass(frozen=True)
class Grams:
    """left = L L^T (m, m), right = R R^T (n, n), float64; a vector stands for a diagonal, None for the identity.

    Of weights stacked on each other, left may be the tuple of their own ones: block-diagonal.
    """

    left: Left = None
    right: Tensor | None = None


def stacked(lefts: Sequence[Left]) -> Left:
    """The left Gram of weights stacked on each other, whose errors add up; theirs are matrices, vectors or None."""
    given = tuple(left for left in lefts if isinstance(left, Tensor))
    if len(given) < 2:
        return given[0] if given else None
    return torch.cat(given) if given[0].ndim == 1 else given


def times(gram: Left, x: Tensor) -> Tensor:
    """gram @ x, for x with as many rows as the Gram is wide."""
    if gram is None:
        return x
    if isinstance(gram, tuple):
        parts = x.split([len(one) for one in gram])
        return torch.cat([times(one, part) for one, part in zip(gram, parts, strict=True)])
    return gram[:, None] * x if gram.ndim == 1 else gram @ x


def squared_error(error: Tensor, grams: Grams) -> float:
    """|L^T E R|_F^2 = tr(E^T (L L^T) E (R R^T)) for E (m, n)."""
    error = error.double()
    return (times(grams.left, error) * times(grams.right, error.T).T).sum().item()


def square_root(gram: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The symmetric root of a Gram and its pseudo-inverse, on the support of the Gram."""
    if gram is None:
        return None, None
    if gram.ndim == 1:
        root = gram.clamp_min(0).sqrt()
        return root, torch.where(gram > SUPPORT * gram.max(), 1 / root, 0)
    values, vectors = torch.linalg.eigh(gram)
    supported = values > SUPPORT * values[-1]
    values, vectors = values[supported].sqrt(), vectors[:, supported]
    return (vectors * values) @ vectors.T, (vectors / values) @ vectors.T


@dataclass(frozen=True)
class Root:
    """Some L with L L^T = a Gram: its Cholesky factor or, where that does not exist, the symmetric root.

    factor None is the identity, a vector a diagonal; inverse, of the symmetric root alone, is its pseudo-inverse.
    """

    factor: Tensor | None
    inverse: Tensor | None = None

    @classmethod
    def of(cls, gram: Left) -> "Root":
        """The root of a Gram (see Grams)."""
        if isinstance(gram, tuple):
            return cls.of(torch.block_diag(*gram))
        if gram is None or gram.ndim == 1:
            return cls(*square_root(gram))
        factor, failed = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal().square()
        if failed or pivots.min() <= SUPPORT * pivots.max():
            return cls(*square_root(gram))
        return cls(factor)

    @property
    def triangular(self) -> Tensor | None:
        """The factor, where it is Cholesky's."""
        return None if self.factor is None or self.factor.ndim == 1 or self.inverse is not None else self.factor

    def whiten(self, x: Tensor) -> Tensor:
        """L^T x."""
        return times(self.factor if self.factor is None or self.factor.ndim == 1 else self.factor.T, x)

    def unwhiten(self, x: Tensor) -> Tensor:
        """L^-T x, L^T's pseudo-inverse where it is singular."""
        if self.inverse is not None or self.factor is None:
            return times(self.inverse, x)
        return torch.linalg.solve_triangular(self.factor.T, x, upper=True)
