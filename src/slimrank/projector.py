"""The truncation of L^T W R from the eigenproblem of its smaller side, of which alone a Gram is factored.

With m <= n: L^T W H W^T L = U S^2 U^T, W'_r = L^-T U_r U_r^T L^T W, H = R R^T being multiplied with only.
With m > n: R^T W^T G W R = V S^2 V^T, W'_r = Y Y^T G W, where Y is W R V_r made orthonormal under G = L L^T.
Neither R nor, with m > n, L is inverted.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slimrank.metric.grams import SUPPORT, Grams, Root, times

Pair = tuple[Tensor, Tensor]


def eigenvectors(square: Tensor) -> Pair:
    """The roots of a positive semidefinite matrix's eigenvalues (q,), descending, and its eigenvectors (q, q)."""
    squares, vectors = torch.linalg.eigh(square)
    return squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)


@dataclass(frozen=True)
class Small:
    """The problem of W (m, n), float64, on its smaller side, of q numbers."""

    weight: Tensor
    grams: Grams

    @property
    def tall(self) -> bool:
        """Whether m > n."""
        return len(self.weight) > self.weight.shape[1]

    @cached_property
    def root(self) -> Root:
        """L, or R if m > n."""
        return Root.of(self.grams.right if self.tall else self.grams.left)

    @cached_property
    def weighted(self) -> Tensor:
        """H W^T (n, m), or G W (m, n) if m > n."""
        return times(self.grams.left, self.weight) if self.tall else times(self.grams.right, self.weight.T)

    @cached_property
    def inner(self) -> Tensor:
        """W H W^T (m, m), or W^T G W (n, n) if m > n."""
        return (self.weight.T if self.tall else self.weight) @ self.weighted

    def square(self) -> Tensor:
        """(L^T W R) (L^T W R)^T, or (L^T W R)^T (L^T W R)."""
        return self.root.whiten(self.root.whiten(self.inner).T)

    def factors(self, basis: Tensor) -> Pair:
        """W'_r as (m, r) and (r, n), from the leading eigenvectors (q, r) of `square`."""
        spread = times(self.root.factor, basis)
        if not self.tall:
            return self.root.unwhiten(basis), spread.T @ self.weight
        left = self.weight @ spread
        dual = left if self.weighted is self.weight else self.weighted @ spread
        sizes = (left * dual).sum(0).clamp_min(0).sqrt()
        lost = sizes <= SUPPORT**0.5 * sizes.max()  # outside H's support: complete the basis with what W does there
        if not lost.any():
            unit = left.div_(sizes)
            square = unit.T @ (unit if dual is left else dual.div_(sizes))
            del dual
            factor, failed = torch.linalg.cholesky_ex(square)
            if not failed and (square.abs().sum(0) <= 1.5).all():
                unit = torch.linalg.solve_triangular(factor.T, unit, upper=True, left=False)
                return unit, unit.T @ self.weighted
        outer = Root.of(self.grams.left)
        unit = torch.linalg.qr(outer.whiten(torch.where(lost, self.weight @ basis, left))).Q
        return outer.unwhiten(unit), unit.T @ outer.whiten(self.weight)

    def parts(self, values: Tensor, basis: Tensor, right: Tensor | None) -> Pair:
        """|L^T W R~|_F^2 with R~ R~^T = `right`, and by how much each direction (q,) of `basis` lowers it."""
        if self.tall:
            duals = self.inner @ times(self.root.factor, basis / values.clamp_min(SUPPORT**0.5 * values[0]))
            return overlap(right, self.inner), (duals * times(right, duals)).sum(0)
        spread, other = times(self.root.factor, basis), self.weight @ times(right, self.weight.T)
        return overlap(self.grams.left, other), (spread * (other @ spread)).sum(0)


def overlap(gram: Tensor | None, square: Tensor) -> Tensor:
    """tr(gram @ square) of symmetric matrices."""
    if gram is None:
        return square.trace()
    return (gram * (square.diagonal() if gram.ndim == 1 else square)).sum()
