"""The truncated SVD of L^T W R from the eigenproblem of its smaller side; only that side's Gram is factored.

With m <= n: L^T W H W^T L = U S^2 U^T, W'_r = L^-T U_r U_r^T L^T W, where H = R R^T is only multiplied with.
With m > n: R^T W^T G W R = V S^2 V^T, W'_r = Y Y^T G W, where Y is W R V_r made orthonormal under G = L L^T.
Neither R nor, with m > n, L is inverted.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from slimrank.numerics.grams import SUPPORT, Blocks, Grams, Left, Root, times
from slimrank.numerics.panels import congruence, product

Pair = tuple[Tensor, Tensor]


def eigenvectors(square: Tensor) -> Pair:
    """The square roots of a semidefinite matrix's eigenvalues (q,), descending, and its eigenvectors (q, q)."""
    squares, vectors = torch.linalg.eigh(square)
    return squares.clamp_min(0).sqrt().flip(0), vectors.flip(1)


def eigenvalues(square: Tensor) -> Tensor:
    """The first result of `eigenvectors`, in a third of the time."""
    return torch.linalg.eigvalsh(square).clamp_min(0).sqrt().flip(0)


EVEN = 100  # max/mean of diag(G) up to which float32 is accurate enough
CLOSE = 1e-3  # S_r / S_1 above which W R V / S is orthonormal to 1e-9 without correction


@dataclass(frozen=True)
class Small:
    """The eigenproblem of W (m, n), float64, on its smaller side of size q = min(m, n).

    rough: for m > n, multiply G W in float32 if diag(G) is even enough. W has full rank there, so that the relative
    error of all losses is below 5e-5 (tested); for m <= n the small losses would be lost.
    """

    weight: Tensor
    grams: Grams
    rough: bool = False

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
        """G W (m, n), for m > n."""
        return self._weighed(self.grams.left, self.weight)

    @cached_property
    def inner(self) -> Tensor:
        """W H W^T (m, m), or W^T G W (n, n) if m > n."""
        left = self.grams.left
        if self.tall and isinstance(left, Blocks):
            total = self.weight.new_zeros(self.weight.shape[1], self.weight.shape[1])
            for gram, part in zip(left, self.weight.split(left.sizes), strict=True):
                total += product(part.T, self._weighed(gram, part))
            return total
        if self.tall:
            return product(self.weight.T, self.weighted)
        return product(self.weight, times(self.grams.right, self.weight.T))

    def _weighed(self, left: Left, weight: Tensor) -> Tensor:
        if self.rough and isinstance(left, Tensor) and _even(left if left.ndim == 1 else left.diagonal()):
            return times(left.float(), weight.float()).double()
        return times(left, weight)

    def square(self) -> Tensor:
        """(L^T W R) (L^T W R)^T (m, m), or (L^T W R)^T (L^T W R) (n, n) if m > n."""
        if self.root.triangular is not None:
            return congruence(self.inner, self.root.triangular)
        return self.root.whiten(self.root.whiten(self.inner).T)

    def factors(self, values: Tensor, basis: Tensor) -> Pair:
        """The factors (m, r) and (r, n) of W'_r, from the leading singular values (r,) and eigenvectors (q, r)."""
        spread = times(self.root.factor, basis)
        if not self.tall:
            return self.root.unwhiten(basis), spread.T @ self.weight
        if len(values) and values[-1] > CLOSE * values[0]:
            spread = spread / values
            return self.weight @ spread, spread.T @ self.inner
        left = self.weight @ spread
        dual = left if self.weighted is self.weight else self.weighted @ spread
        sizes = (left * dual).sum(0).clamp_min(0).sqrt()
        lost = sizes <= SUPPORT**0.5 * sizes.max()  # outside H's support the basis is completed with W's directions
        if not lost.any():
            unit = left.div_(sizes)
            square = product(unit.T, unit if dual is left else dual.div_(sizes))
            del dual
            factor, failed = torch.linalg.cholesky_ex(square)
            if not failed and (square.abs().sum(0) <= 1.5).all():
                unit = torch.linalg.solve_triangular(factor.T, unit, upper=True, left=False)
                return unit, unit.T @ self.weighted
        outer = Root.of(self.grams.left)
        unit = torch.linalg.qr(outer.whiten(torch.where(lost, self.weight @ basis, left))).Q
        return outer.unwhiten(unit), unit.T @ outer.whiten(self.weight)

    def left_out(self, values: Tensor, basis: Tensor, right: Tensor | None) -> Tensor:
        """|L^T (W - W'_r) R~|_F^2 with R~ R~^T = `right` at every rank r = 0..q (q + 1,), float64.

        basis: all eigenvectors (q, q) of `square`; its dtype is that of the products. In float32 and for m <= n the
        root of the result is exact to 1 % where it is above 0.2 % of that at rank 0 (tested); for m > n float32 is not
        accurate enough.
        """
        dtype, weight, root = basis.dtype, self.weight.to(basis.dtype), self.root.factor
        root, right = (None if matrix is None else matrix.to(dtype) for matrix in (root, right))
        rest = weight.new_zeros((), dtype=torch.float64)
        if self.tall:
            sound = values > SUPPORT**0.5 * values[0]
            duals = self.inner.to(dtype) @ times(root, basis / torch.where(sound, values, torch.inf).to(dtype))
            parts = (duals * times(right, duals)).sum(0).double()
            if not sound.all():  # the part of H~ outside H's support is lost at every rank below q
                rest = (overlap(right, self.inner.to(dtype)).double() - parts.sum()).clamp_min(0)
        else:
            spread = times(root, basis)
            parts = (spread * (product(weight, times(right, weight.T)) @ spread)).sum(0).double()
        tails = parts.flip(0).cumsum(0).flip(0) + rest
        return torch.cat([tails, tails.new_zeros(1)])


def _even(diagonal: Tensor) -> bool:
    return bool(diagonal.max() <= EVEN * diagonal.mean())


def overlap(gram: Tensor | None, square: Tensor) -> Tensor:
    """tr(gram @ square) for symmetric matrices."""
    if gram is None:
        return square.trace()
    return (gram * (square.diagonal() if gram.ndim == 1 else square)).sum()
