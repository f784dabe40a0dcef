"""Spectrum: singular values of every linear in its metric, which tell the loss at every rank."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import pad

from slimrank.errors import SlimrankError
from slimrank.numerics.grams import SUPPORT, Grams, Root, times
from slimrank.numerics.projector import Pair, Small, eigenvalues, eigenvectors
from slimrank.runtime.threads import one_thread

Timer = Callable[[], AbstractContextManager[None]]

LEAST = 1e-300  # a divisor at least, so that the error of a weight that maps all to 0 is no share of it


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


ROUTES: dict[str, Callable[[Tensor, Grams, int | None], Decomposition]] = {
    "projector": projector_route,
    "cholesky": cholesky_route,
    "eigen": eigen_route,
}


def decompose(weight: Tensor, grams: Grams, route: str = "projector", rank: int | None = None) -> Decomposition:
    """Decompose W (m, n) in the metric of `grams`; computed and returned in float64.

    rank: the largest that `cut` will be asked for, all by default.
    """
    with one_thread(weight):
        return ROUTES[route](weight.double(), grams, rank)


def decompose_again(
    weight: Tensor, grams: Grams, route: str, known: Pair | None, rank: int | None = None
) -> Decomposition:
    """As decompose, with the projector route's `eigenvectors` where they are known."""
    if known is not None and route == "projector":
        with one_thread(weight):
            return projector_route(weight.double(), grams, rank, known)
    return decompose(weight, grams, route, rank)


@dataclass(frozen=True)
class Curve:
    """What every rank 0..q costs: singular values (q,), and on other inputs the error's share of the norm (q + 1,).

    measured: |L^T (W - W'_r) R~|_F / |L^T W R~|_F with R~ of held-out windows, None where there are none; damping: as
    Decomposition's; basis: what spares `projector_route` its eigenproblem.
    """

    values: Tensor
    measured: Tensor | None = None
    damping: float = 0.0
    basis: Tensor | None = None


def curve(
    weight: Tensor,
    grams: Grams,
    held_out: Grams | None,
    route: str = "projector",
    *,
    bases: bool = True,
    timer: Timer = nullcontext,
) -> Curve:
    """The curve of W (m, n) under `grams`, measured under the right one of `held_out`, the left one being the same.

    The projector route needs no more than the small eigenproblem: without `bases` its values alone, whose squares' sums
    are good to 5e-5 (see Small), and for the measure vectors in float32, unless m > n (see Small.left_out).
    timer: around the measuring.
    """
    with one_thread(weight):
        return _curve(weight.double(), grams, held_out, route, bases, timer)


def _curve(weight: Tensor, grams: Grams, held_out: Grams | None, route: str, bases: bool, timer: Timer) -> Curve:
    if route != "projector":
        return curve_of(weight, decompose(weight, grams, route), held_out and Grams(grams.left, held_out.right))
    small = Small(weight, grams, rough=not bases)
    square = small.square()
    values, basis = eigenvectors(square) if bases else (eigenvalues(square), None)
    if held_out is None:
        return Curve(values, basis=basis)
    with timer():
        _, directions = (values, basis) if basis is not None else eigenvectors(square if small.tall else square.float())
        left = small.left_out(values, directions, held_out.right)
        return Curve(values, (left / left[0].clamp_min(LEAST)).sqrt(), basis=basis)


def curve_of(weight: Tensor, found: Decomposition, held_out: Grams | None) -> Curve:
    """The curve that a decomposition of W (m, n) gives, by whatever route it was found, measured under `held_out`."""
    measured = None if held_out is None else _expansion_shares(weight.double(), found, held_out)
    return Curve(found.values, measured, found.damping)


def _expansion_shares(weight: Tensor, found: Decomposition, grams: Grams) -> Tensor:
    """The share for W - sum_{i < r} l_i r_i at every r, of vectors that need not be orthogonal in these Grams."""
    left, right = grams.left, grams.right
    weighted = times(left, found.left)
    overlaps = (found.left.T @ weighted) * (found.right @ times(right, found.right.T))
    alone = (times(right, weight.T) @ weighted * found.right.T).sum(0)
    total = (times(left, weight) * times(right, weight.T).T).sum()
    both = overlaps.cumsum(0).cumsum(1).diagonal()
    losses = total - torch.cat([both.new_zeros(1), 2 * alone.cumsum(0) - both])
    return (losses / total.clamp_min(LEAST)).clamp_min(0).sqrt()


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
