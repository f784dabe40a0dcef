"""Spectrum: singular values of every linear in its metric, which tell the loss at every rank."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from slimrank.metric.grams import SUPPORT, Grams, square_root, times

cached_root = lru_cache(maxsize=2)(square_root)  # linears that share an input share its root


@dataclass(frozen=True)
class Decomposition:
    """The optimum at every rank: left[:, :r] @ right[:r] minimises |L^T (W - W') R|_F over rank r.

    values (q,) singular values of L^T W R, descending; left (m, q); right (q, n); float64. damping: the share of H's
    mean diagonal that had to be added to factor it.
    """

    values: Tensor
    left: Tensor
    right: Tensor
    damping: float = 0.0

    def cut(self, rank: int) -> tuple[Tensor, Tensor]:
        """The two factors, (m, rank) and (rank, n)."""
        return self.left[:, :rank], self.right[:rank]

    def loss(self, rank: int) -> float:
        """The squared error of the cut, the sum of the squared values that it drops."""
        return self.values[rank:].square().sum().item()


def projector_route(weight: Tensor, grams: Grams) -> Decomposition:
    """W'_r = L^-T U_r U_r^T L^T W, from the eigenvectors of the smaller Gram: R is never inverted."""
    root, inverse = cached_root(grams.left)
    target = times(root, weight)
    rows, columns = target.shape
    if rows <= columns:
        squares, basis = torch.linalg.eigh(times(grams.right, target.T).T @ target.T)
        values, basis = squares.clamp_min(0).sqrt().flip(0), basis.flip(1)
    else:
        whitened = times(cached_root(grams.right)[0], target.T).T
        squares, v = torch.linalg.eigh(whitened.T @ whitened)
        values, v = squares.clamp_min(0).sqrt().flip(0), v.flip(1)
        lost = values <= SUPPORT**0.5 * values[0]  # outside H's support: complete the basis with what W does there
        basis = torch.linalg.qr(torch.where(lost, target @ v, whitened @ v)).Q
    return Decomposition(values, times(inverse, basis), basis.T @ target)


def cholesky_route(weight: Tensor, grams: Grams) -> Decomposition:
    """SVD-LLM as printed: R = cholesky(H), W' = U_r S_r V_r^T R^-1; damps H by its mean diagonal if it must."""
    gram = _full(grams.right, weight.shape[1], weight)
    damping = 0.0
    factor, failed = torch.linalg.cholesky_ex(gram)
    while failed:
        damping = max(10 * damping, 1e-10)
        factor, failed = torch.linalg.cholesky_ex(
            gram + damping * gram.diagonal().mean() * torch.eye(len(gram)).to(gram)
        )
    u, values, v = torch.linalg.svd(_left(weight, grams) @ factor, full_matrices=False)
    right = torch.linalg.solve_triangular(factor.T, v.T, upper=True).T
    return Decomposition(values, times(cached_root(grams.left)[1], u), values[:, None] * right, damping)


def eigen_route(weight: Tensor, grams: Grams) -> Decomposition:
    """SVD-LLM V2: R = U_h Lam^(1/2) on the support of H, W' = U_r S_r V_r^T Lam^(-1/2) U_h^T."""
    gram = _full(grams.right, weight.shape[1], weight)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    supported = eigenvalues > SUPPORT * eigenvalues[-1]
    scale, vectors = eigenvalues[supported].sqrt(), vectors[:, supported]
    u, values, v = torch.linalg.svd(_left(weight, grams) @ (vectors * scale), full_matrices=False)
    left, right = times(cached_root(grams.left)[1], u), values[:, None] * (v @ (vectors / scale).T)
    missing = min(weight.shape) - len(values)  # ranks outside the support carry nothing
    return Decomposition(pad(values, (0, missing)), pad(left, (0, missing)), pad(right, (0, 0, 0, missing)))


ROUTES: dict[str, Callable[[Tensor, Grams], Decomposition]] = {
    "projector": projector_route,
    "cholesky": cholesky_route,
    "eigen": eigen_route,
}


def decompose(weight: Tensor, grams: Grams, route: str = "projector") -> Decomposition:
    """Decompose W (m, n) in the metric of `grams`; computed and returned in float64."""
    return ROUTES[route](weight.double(), grams)


def _left(weight: Tensor, grams: Grams) -> Tensor:
    return times(cached_root(grams.left)[0], weight)


def _full(gram: Tensor | None, width: int, like: Tensor) -> Tensor:
    if gram is None:
        return torch.eye(width, dtype=like.dtype, device=like.device)
    return gram.diag() if gram.ndim == 1 else gram


@dataclass(frozen=True)
class LinearSpectrum:
    """One linear: singular values (q,) in its metric, shape (m, n), block, and role (its name inside the block)."""

    values: Tensor
    shape: tuple[int, int]
    block: int
    role: str

    def losses(self) -> Tensor:
        """The squared error at every rank 0..q (q + 1,): the sum of the squares that the cut drops."""
        squares = self.values.double().square().flip(0).cumsum(0).flip(0)
        return torch.cat([squares, squares.new_zeros(1)])


@dataclass(frozen=True)
class Spectrum:
    """Every linear's spectrum by name, in the model's order."""

    linears: dict[str, LinearSpectrum]

    def save(self, path: Path) -> None:
        """One safetensors file."""
        metadata = {k: f"{s.shape[0]} {s.shape[1]} {s.block} {s.role}" for k, s in self.linears.items()}
        save_file({k: s.values.cpu() for k, s in self.linears.items()}, path, metadata=metadata)

    @classmethod
    def load(cls, path: Path) -> "Spectrum":
        """The inverse of save; order is by block."""
        linears = {}
        with safe_open(path, "pt") as file:
            for name, line in file.metadata().items():
                rows, columns, block, role = line.split(" ")
                linears[name] = LinearSpectrum(file.get_tensor(name), (int(rows), int(columns)), int(block), role)
        return cls(dict(sorted(linears.items(), key=lambda item: item[1].block)))
