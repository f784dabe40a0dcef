"""What rounding will cost, before anything is rounded.

With feedback the loss is the sum of d_O,i d_I,j eta_ij^2 (see rounding.feedback), and eta is what rounding one number
leaves: about as much as the weight itself leaves when it is rounded to nearest, clipped numbers included. Without
feedback along a side its weights are the diagonal of that side's Gram. One factorisation of a Gram so prices every
width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.numerics.grams import Blocks, Grams, Left
from slimrank.rounding.feedback import Factor
from slimrank.rounding.grid import Grid, search_scales
from slimrank.rounding.resolve import diagonal, even


@dataclass(frozen=True)
class Weights:
    """What a squared residue costs: rows (m,) times columns (n,), float64; None for ones."""

    rows: Tensor | None = None
    columns: Tensor | None = None

    @classmethod
    def of(cls, left: Left, right: Tensor | None, *, two_sided: bool, damping: float = 0.0) -> "Weights":
        """Of feedback along the inputs, and along the outputs where it is two-sided.

        left: G, of several linears its blocks, each rounded by itself; right: H.
        """
        parts = list(left) if isinstance(left, Blocks) else [left]
        rows = [Factor.of(part, damping).weights if two_sided else diagonal(part) for part in parts]
        present = [part for part in rows if part is not None]
        return cls(torch.cat(present) if present else None, Factor.of(right, damping).weights)

    def weigh(self, squares: Tensor) -> Tensor:
        """The costs (m, n) of squared residues (m, n)."""
        squares = squares if self.rows is None else squares * self.rows[:, None]
        return squares if self.columns is None else squares * self.columns


@dataclass(frozen=True)
class Pricing:
    """What to price: the grids; two_sided: whether feedback will run along the outputs too; damping: see Factor.of."""

    grids: tuple[Grid, ...]
    two_sided: bool = True
    damping: float = 0.0


@dataclass(frozen=True)
class Prices:
    """The expected loss of a weight on a grid: dense, rounded as it is; factors, what it adds by rank (q + 1,)."""

    dense: float
    factors: Tensor


def prices_of(weight: Tensor, left: Tensor, right: Tensor, grams: Grams, pricing: Pricing) -> dict[Grid, Prices]:
    """The prices of W (m, n) on every grid; left (m, q), right (q, n): of its whole decomposition under `grams`."""
    weights = Weights.of(grams.left, grams.right, two_sided=pricing.two_sided, damping=pricing.damping)
    return {
        grid: Prices(dense_price(weight, grid, weights), factors_price(left, right, grid, weights, grams.right))
        for grid in pricing.grids
    }


def dense_price(weight: Tensor, grid: Grid, weights: Weights) -> float:
    """The expected tr(G E H E^T) of W (m, n) rounded on the grid."""
    return weights.weigh(squares(weight, grid, weights.columns)).sum().item()


def factors_price(left: Tensor, right: Tensor, grid: Grid, weights: Weights, gram: Tensor | None) -> Tensor:
    """The expected loss that rounding adds to U V at every rank 0..q (q + 1,), float64.

    left U (m, q) and right V (q, n): of a decomposition, so that U^T G U = I and V H V^T is diagonal; gram: H (n, n).
    Fitting U again to the rounded V takes back what of V's error lies in the span of its rows, a share r / n. A group
    of U's columns that a rank cuts is priced as if it were whole.
    """
    left, right = left.double(), right.double()
    columns, rows = right.shape[1], Weights(None, weights.columns)
    of_down = rows.weigh(squares(right, grid, weights.columns)).sum(1)
    energy = (right * (right if gram is None else right * gram if gram.ndim == 1 else right @ gram)).sum(1)
    flat, _ = even(left, right)
    long = left.norm(dim=0)
    inner = energy * long.square()
    of_up = Weights(weights.rows, inner).weigh(squares(flat, grid, inner)).sum(0)
    ranks = torch.arange(len(right) + 1, dtype=torch.float64)
    first = torch.cat([of_down.new_zeros(1), of_down.cumsum(0)]) * (1 - ranks / columns).to(of_down).clamp_min(0)
    return first + torch.cat([of_up.new_zeros(1), of_up.cumsum(0)])


def squares(weight: Tensor, grid: Grid, weights: Tensor | None) -> Tensor:
    """The squared errors (m, n) of W rounded to nearest, its scales searched with these weights of the columns."""
    weight = weight.double()
    step = grid.spread(search_scales(weight, weights, grid), weight.shape[1])
    return (grid.numbers(weight, step) * step - weight).square_()
