"""The weights (L, R) of an error |L^T (W - W') R|_F, as the Grams L L^T and R R^T."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

SUPPORT = 1e-12  # eigenvalues below this share of the largest are rounding errors


@dataclass(frozen=True)
class Blocks:
    """A block-diagonal left Gram, for stacked weights.

    sizes: of the blocks; make: returns block i, a matrix or its diagonal, at every call, so that one is in memory.
    """

    sizes: tuple[int, ...]
    make: Callable[[int], Tensor]

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.make, range(len(self.sizes)))

    def whole(self) -> Tensor:
        """The block-diagonal matrix."""
        return torch.block_diag(*(block.diag() if block.ndim == 1 else block for block in self))


Left = Tensor | Blocks | None


@dataclass(frozen=True)
class Grams:
    """left = L L^T (m, m), right = R R^T (n, n), float64; a vector stands for a diagonal, None for the identity."""

    left: Left = None
    right: Tensor | None = None


def times(gram: Left, x: Tensor) -> Tensor:
    """gram @ x for a Gram (n, n) and x (n, k)."""
    if gram is None:
        return x
    if isinstance(gram, Blocks):
        return torch.cat([times(block, part) for block, part in zip(gram, x.split(gram.sizes), strict=True)])
    return gram[:, None] * x if gram.ndim == 1 else gram @ x


def squared_error(error: Tensor, grams: Grams) -> float:
    """|L^T E R|_F^2 = tr(E^T (L L^T) E (R R^T)) for E (m, n); where rounding makes it negative, 0."""
    error = error.double()
    return max((times(grams.left, error) * times(grams.right, error.T).T).sum().item(), 0.0)


def shrunk_(gram: Tensor, share: float) -> Tensor:
    """(1 - share) gram + share tr(gram)/m I, in place."""
    mean = gram.diagonal().mean()
    gram.mul_(1 - share).diagonal().add_(share * mean)
    return gram


def square_root(gram: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """The symmetric square root of a Gram and its pseudo-inverse, both on the Gram's support."""
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
    """L with L L^T = a Gram: the Cholesky factor or, if the Gram is singular, the symmetric square root.

    factor: None for the identity, a vector for a diagonal; inverse: the pseudo-inverse of a symmetric root, else None.
    """

    factor: Tensor | None
    inverse: Tensor | None = None

    @classmethod
    def of(cls, gram: Left) -> "Root":
        """The root of a Gram (see Grams)."""
        if isinstance(gram, Blocks):
            return cls.of(gram.whole())
        if gram is None or gram.ndim == 1:
            return cls(*square_root(gram))
        factor, failed = torch.linalg.cholesky_ex(gram)
        pivots = factor.diagonal().square()
        if failed or pivots.min() <= SUPPORT * pivots.max():
            return cls(*square_root(gram))
        return cls(factor)

    @property
    def triangular(self) -> Tensor | None:
        """The Cholesky factor, None for other roots."""
        return None if self.factor is None or self.factor.ndim == 1 or self.inverse is not None else self.factor

    def whiten(self, x: Tensor) -> Tensor:
        """L^T x."""
        return times(self.factor if self.factor is None or self.factor.ndim == 1 else self.factor.T, x)

    def unwhiten(self, x: Tensor) -> Tensor:
        """L^-T x, by the pseudo-inverse of a singular L."""
        if self.inverse is not None or self.factor is None:
            return times(self.inverse, x)
        return torch.linalg.solve_triangular(self.factor.T, x, upper=True)
