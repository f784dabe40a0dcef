"""The singular value decomposition of a weight in a metric, by three algorithms (routes)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from slimrank.errors import SlimrankError
from slimrank.numerics.grams import SUPPORT, Grams, Root
from slimrank.numerics.projector import Pair, Small, eigenvectors
from slimrank.numerics.threads import one_thread

Route = Literal["projector", "cholesky", "eigen"]


@dataclass(frozen=True)
class Decomposition:
    """The optimum at every rank: left[:, :r] @ right[:r] minimises |L^T (W - W') R|_F over W' of rank r.

    values (q,), the singular values of L^T W R, descending; left (m, k) and right (k, n) for ranks up to k, q by
    default; float64. damping: the share of H's mean diagonal added to H to make it positive definite.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    damping: float = 0.0

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.values.nbytes + self.left.nbytes + self.right.nbytes

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """The two factors, (m, rank) and (rank, n)."""
        return self.left[:, :rank], self.right[:rank]

    def loss(self, rank: int) -> float:
        """The squared error at a rank: the sum of the squared singular values beyond it."""
        return self.values[rank:].square().sum().item()


def projector_route(weight: Tensor, grams: Grams, rank: int | None = None, known: Pair | None = None) -> Decomposition:
    """From the eigenproblem of the smaller side (see numerics.projector); known: its `eigenvectors`, if computed."""
    small, rank = Small(weight, grams), None if rank is None else max(rank, 1)  # of which rank 0 is cut
    values, basis = known or eigenvectors(small.square())
    return Decomposition(values, *small.factors(values[:rank], basis[:, :rank]))


def cholesky_route(weight: Tensor, grams: Grams, rank: int | None = None) -> Decomposition:
    """SVD-LLM as published: R = cholesky(H), W' = U_r S_r V_r^T R^-1; damps a singular H by its mean diagonal."""
    factor, damping = _damped_cholesky(_full(grams.right, weight.shape[1], weight))
    root = Root.of(grams.left)
    u, values, v = torch.linalg.svd(root.whiten(weight) @ factor, full_matrices=False)
    right = torch.linalg.solve_triangular(factor.T, v[:rank].T, upper=True).T
    return Decomposition(values, root.unwhiten(u[:, :rank]), values[:rank, None] * right, damping)


def _damped_cholesky(gram: Tensor) -> tuple[Tensor, float]:
    """The lower Cholesky factor of H + damping mean(diag H) I, and damping: the least of 0, 1e-10, 1e-9, ... for it."""
    mean, damping = gram.diagonal().mean(), 0.0
    factor, failed = torch.linalg.cholesky_ex(gram)
    while failed:
        damping = max(10 * damping, 1e-10)
        if damping > 1:
            raise SlimrankError("A Gram of the metric can't be factored for NaN or Inf in it: try --dtype float32.")
        factor, failed = torch.linalg.cholesky_ex(
            gram + damping * (mean if mean else 1) * torch.eye(len(gram)).to(gram)
        )
    return factor, damping


def eigen_route(weight: Tensor, grams: Grams, rank: int | None = None) -> Decomposition:
    """SVD-LLM V2: R = U_h Lam^(1/2) on the support of H, W' = U_r S_r V_r^T Lam^(-1/2) U_h^T."""
    gram = _full(grams.right, weight.shape[1], weight)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    supported = eigenvalues > SUPPORT * eigenvalues[-1]
    scale, vectors = eigenvalues[supported].sqrt(), vectors[:, supported]
    root = Root.of(grams.left)
    u, values, v = torch.linalg.svd(root.whiten(weight) @ (vectors * scale), full_matrices=False)
    left, right = root.unwhiten(u), values[:, None] * (v @ (vectors / scale).T)
    missing = min(weight.shape) - len(values)  # singular values outside the support are 0
    return Decomposition(pad(values, (0, missing)), pad(left, (0, missing)), pad(right, (0, 0, 0, missing)))


ROUTES: dict[Route, Callable[[Tensor, Grams, int | None], Decomposition]] = {
    "projector": projector_route,
    "cholesky": cholesky_route,
    "eigen": eigen_route,
}


def decompose_weight(
    weight: Tensor, grams: Grams, route: Route = "projector", rank: int | None = None
) -> Decomposition:
    """Decompose W (m, n) in the metric of `grams`, in float64.

    rank: the largest rank that the result is cut to, all by default.
    """
    with one_thread(weight):
        return ROUTES[route](weight.double(), grams, rank)


def decompose_weight_again(
    weight: Tensor, grams: Grams, route: Route, known: Pair | None, rank: int | None = None
) -> Decomposition:
    """As decompose_weight; known: the projector route's `eigenvectors`, which are then not computed again."""
    if known is not None and route == "projector":
        with one_thread(weight):
            return projector_route(weight.double(), grams, rank, known)
    return decompose_weight(weight, grams, route, rank)


def _full(gram: Tensor | None, width: int, like: Tensor) -> Tensor:
    """A Gram as a matrix (width, width)."""
    if gram is None:
        return torch.eye(width, dtype=like.dtype, device=like.device)
    return gram.diag() if gram.ndim == 1 else gram
