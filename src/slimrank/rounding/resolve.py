"""Two factors rounded one after the other: V, then U fitted again to the V that there is, then U."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.numerics.grams import Grams, times
from slimrank.rounding.feedback import Factor, round_weight
from slimrank.rounding.grid import Grid, Rounded


@dataclass(frozen=True)
class RoundedFactors:
    """W' = U V, both rounded: up (m, r), down (r, n)."""

    up: Rounded
    down: Rounded

    @property
    def weight(self) -> Tensor:
        """U V (m, n), float64."""
        return self.up.weight @ self.down.weight


@torch.no_grad()
def resolved_left(target: Tensor, right: Tensor, gram: Tensor | None) -> Tensor:
    """U = T H V^T (V H V^T)^+ (m, r), float64, which minimises |L^T (T - U V) R| for any L, with H = R R^T.

    target T (m, n), right V (r, n), gram H (n, n), a diagonal (n,), or None for the identity.
    """
    target, right = target.double(), right.double()
    projected = times(None if gram is None else gram.double(), right.T)
    return target @ projected @ torch.linalg.pinv(right @ projected, hermitian=True)


def round_factors(
    target: Tensor,
    left: Tensor,
    right: Tensor,
    grams: Grams,
    grid: Grid,
    *,
    two_sided: bool = True,
    feedback: bool = True,
    resolve: bool = True,
    damping: float = 0.0,
) -> RoundedFactors:
    """left U (m, r) and right V (r, n) of a target T (m, n), rounded with little |L^T (T - U V) R|.

    The price of V's error alone is tr(U^T G U E H E^T), and of U's tr(G E (V H V^T) E^T), G and H being `grams`.
    two_sided: whether feedback also runs along the sides of G; feedback: without it both are rounded to nearest;
    resolve: whether U is fitted again once V is rounded; damping: see Factor.of.
    """
    left, right = even(left.double(), right.double())
    outer = times(grams.left, left) if two_sided else left
    down = _round(right, grid, left.T @ outer if two_sided else None, grams.right, feedback, damping)
    if resolve:
        left = resolved_left(target, down.weight, grams.right)
    inner = down.weight @ times(grams.right, down.weight.T)
    gram = grams.left if two_sided else None
    assert gram is None or isinstance(gram, Tensor), "the factors of one linear are rounded"
    return RoundedFactors(_round(left, grid, gram, inner, feedback, damping), down)


def even(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with columns of U (m, r) of one length, since a group of them shares a scale."""
    long = left.norm(dim=0)
    long = torch.where(long > 0, long, 1.0)
    return left / long, right * long[:, None]


def _round(
    weight: Tensor, grid: Grid, left: Tensor | None, right: Tensor | None, feedback: bool, damping: float
) -> Rounded:
    if feedback:
        return round_weight(weight, grid, Factor.of(left, damping), Factor.of(right, damping))
    return round_weight(weight, grid, right=Factor.of(diagonal(right)))


def diagonal(gram: Tensor | None) -> Tensor | None:
    """The diagonal (n,) of a Gram."""
    return gram.diagonal() if gram is not None and gram.ndim == 2 else gram
