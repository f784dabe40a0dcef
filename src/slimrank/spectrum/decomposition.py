"""The decomposition of a weight in a metric, by three routes."""

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
    """The optimum at every rank: left[:, :r] @ right[:r] minimises |L^T (W - W') R|_F over rank r.

    values (q,) singular values of L^T W R, descending; left (m, k) and right (k, n), k the largest rank that was asked
    for, q by default; float64. damping: the share of H's mean diagonal that had to be added to factor it.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    damping: float = 0.0

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.values.nbytes + self.left.nbytes + self.right.nbytes

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """The two factors, (m, rank) and (rank, n)."""
        return self.left[:, :rank], self.right[:rank]

    def loss(self, rank: int) -> float:
        """The squared error of the cut, the sum of the squared values that it drops."""
        return self.values[rank:].square().sum().item()


def projector_route(weight: Tensor, grams: Grams, rank: int | None = None, found: Pair | None = None) -> Decomposition:
    """By the eigenproblem of the smaller side (see numerics.projector); found: its outcome, if known."""
    small = Small(weight, grams)
    values, basis = found or eigenvectors(small.square())
    return Decomposition(values, *small.factors(values[:rank], basis[:, :rank]))


def cholesky_route(weight: Tensor, grams: Grams, rank: int | None = None) -> Decomposition:
    """SVD-LLM as printed: R = cholesky(H), W' = U_r S_r V_r^T R^-1; damps H by its mean diagonal if it must."""
    factor, damping = _damped_cholesky(_full(grams.right, weight.shape[1], weight))
    root = Root.of(grams.left)
    u, values, v = torch.linalg.svd(root.whiten(weight) @ factor, full_matrices=False)
    right = torch.linalg.solve_triangular(factor.T, v[:rank].T, upper=True).T
    return Decomposition(values, root.unwhiten(u[:, :rank]), values[:rank, None] * right, damping)


def _damped_cholesky(gram: Tensor) -> tuple[Tensor, float]:
    """The lower factor of H and the share of its mean diagonal, of 1 for H = 0, that had to be added to it."""
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
    missing = min(weight.shape) - len(values)  # ranks outside the support carry nothing
    return Decomposition(pad(values, (0, missing)), pad(left, (0, missing)), pad(right, (0, 0, 0, missing)))


ROUTES: dict[Route, Callable[[Tensor, Grams, int | None], Decomposition]] = {
    "projector": projector_route,
    "cholesky": cholesky_route,
    "eigen": eigen_route,
}


def decompose_weight(
    weight: Tensor, grams: Grams, route: Route = "projector", rank: int | None = None
) -> Decomposition:
    """Decompose W (m, n) in the metric of `grams`; computed and returned in float64.

    rank: the largest that `cut` will be asked for, all by default.
    """
    with one_thread(weight):
        return ROUTES[route](weight.double(), grams, rank)


def decompose_weight_again(
    weight: Tensor, grams: Grams, route: Route, known: Pair | None, rank: int | None = None
) -> Decomposition:
    """As decompose_weight, with the projector route's `eigenvectors` where they are known."""
    if known is not None and route == "projector":
        with one_thread(weight):
            return projector_route(weight.double(), grams, rank, known)
    return decompose_weight(weight, grams, route, rank)


def _full(gram: Tensor | None, width: int, like: Tensor) -> Tensor:
    if gram is None:
        return torch.eye(width, dtype=like.dtype, device=like.device)
    return gram.diag() if gram.ndim == 1 else gram
