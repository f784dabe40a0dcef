"""Rounding that makes up for its own errors: each entry takes back what the entries before it left.

With G = L_O D_O L_O^T and H = L_I D_I L_I^T (L unit lower triangular) the loss tr(G E H E^T) of an error E = W' - W is
the sum of d_O,i d_I,j eta_ij^2 over the residue eta = L_O^T E L_I. Entries are rounded from the last row and column to
the first, W'_ij = Q(W_ij - (eta_ij - E_ij)), so that eta_ij is what rounding entry ij alone leaves. With one Gram that
is GPTQ (arXiv 2210.17323, by columns) or LDLQ (2307.13304); with both YAQA (2505.22988).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from slimrank.errors import SlimrankError
from slimrank.rounding.grid import Grid, Rounded, search_scales

TILE = 64  # rows and columns whose entries are rounded between two products of matrices


@dataclass(frozen=True)
class Factor:
    """A Gram L D L^T: lower L (n, n), None for the identity; weights D (n,), None for ones; float64."""

    lower: Tensor | None = None
    weights: Tensor | None = None

    @classmethod
    def of(cls, gram: Tensor | None, damping: float = 0.0) -> "Factor":
        """The factors of a Gram (n, n), of a diagonal (n,), or of the identity (None).

        damping: the share of the mean diagonal that is added first, raised tenfold until the Gram can be factored.

        Raises:
            SlimrankError: for a Gram with NaN or Inf.
        """
        if gram is None or gram.ndim == 1:
            return cls(None, None if gram is None else gram.double())
        gram = gram.double()
        mean = gram.diagonal().mean()
        while damping <= 1:
            raised = gram + damping * torch.where(mean > 0, mean, 1.0) * torch.eye(len(gram)).to(gram)
            root, failed = torch.linalg.cholesky_ex(raised)
            if not failed:
                scale = root.diagonal()
                return cls(root / scale, scale.square())
            damping = max(10 * damping, 1e-10)
        raise SlimrankError("A Gram can't be factored for rounding, for NaN or Inf in it: try --dtype float32.")

    def padded(self, size: int) -> "Factor":
        """The factors with rows and columns of the identity behind them, up to `size`."""
        if self.lower is None:
            return self
        more = size - len(self.lower)
        lower = pad(self.lower, (0, more, 0, more))
        lower.diagonal()[-more or size :] = 1
        return Factor(lower, self.weights)


def round_weight(weight: Tensor, grid: Grid, left: Factor | None = None, right: Factor | None = None) -> Rounded:
    """W (m, n) on the grid with little tr(G E H E^T), by feedback along each side whose Gram is no diagonal.

    left, right: the factors of G (m, m) and H (n, n), None for the identity. Computed in float64; a group's scales are
    searched when it is reached, on the values that are then to be rounded, where groups are 16 to 128 wide or feedback
    runs along rows alone; otherwise before, on W.
    """
    left, right = left or Factor(), right or Factor()
    weight = weight.double()
    if left.lower is None and right.lower is None:
        scale = search_scales(weight, right.weights, grid)
        return _rounded(grid, grid.numbers(weight, grid.spread(scale, weight.shape[1])), scale)
    return _Tiles(weight, grid, left, right).run()


def residue(error: Tensor, left: Factor, right: Factor) -> Tensor:
    """eta = L_O^T E L_I (m, n) of an error E (m, n)."""
    error = error.double()
    error = error if left.lower is None else left.lower.T @ error
    return error if right.lower is None else error @ right.lower


class _Tiles:
    """A weight in tiles: a side without feedback is one tile, and tiles on one anti-diagonal are rounded together."""

    def __init__(self, weight: Tensor, grid: Grid, left: Factor, right: Factor) -> None:
        (rows, columns), self.grid = weight.shape, grid
        self.shape = rows, columns
        width = grid.width(columns)
        late = width % 16 == 0 and width <= 128 and (width % TILE == 0 or TILE % width == 0)
        self.wide = columns if right.lower is None else max(width, TILE) if late else TILE
        self.high = rows if left.lower is None else TILE
        self.down, self.across = -(-rows // self.high), -(-columns // self.wide)
        size = self.down * self.high, self.across * self.wide
        self.left, self.right = left.padded(size[0]), right.padded(size[1])
        self.late = late or right.lower is None
        self.weight = pad(weight, (0, size[1] - columns, 0, size[0] - rows))
        weights = weight.new_ones(columns) if right.weights is None else right.weights
        self.weights = pad(weights, (0, size[1] - columns))
        # a group that ends beyond the columns has the scales of what is there
        self.inner = Grid(grid.bits, width)
        self.scale = search_scales(weight, weights, grid) if not self.late else weight.new_zeros(0)
        self.step = torch.ones_like(self.weight)
        if not self.late:
            self.step[:rows, :columns] = grid.spread(self.scale, columns)
        self.numbers, self.error, self.sums = (torch.zeros_like(self.weight) for _ in range(3))

    def run(self) -> Rounded:
        """Round all tiles, from the last."""
        for place in range(self.down + self.across - 1):
            back = torch.arange(max(0, place - self.across + 1), min(place, self.down - 1) + 1)
            self._round(self.down - 1 - back, self.across - 1 - (place - back))
        rows, columns = self.shape
        numbers, step = self.numbers[:rows, :columns], self.step[:rows, :columns]
        scale = step[:, :: self.grid.width(columns)] if self.late else self.scale
        return _rounded(self.grid, numbers, scale.contiguous())

    def _round(self, down: Tensor, across: Tensor) -> None:
        """Round the tiles (down[b], across[b])."""
        weight, left, right = self._tiles(self.weight, down, across), self.left.lower, self.right.lower
        along, below = torch.zeros_like(weight), torch.zeros_like(weight)
        corner = side = None
        if right is not None:
            columns = right.view(len(right), self.across, self.wide)[:, across].transpose(0, 1)
            along = self.error.view(self.down, self.high, -1)[down] @ columns
            corner = columns.view(len(across), self.across, self.wide, self.wide)[torch.arange(len(across)), across]
        if left is not None:
            columns = left.view(len(left), self.down, self.high)[:, down].transpose(0, 1)
            sums = self.sums.view(-1, self.across, self.wide)[:, across].transpose(0, 1)
            below = columns.transpose(1, 2) @ sums
            side = columns.view(len(down), self.down, self.high, self.high)[torch.arange(len(down)), down]
        step = self._steps(weight - along - below, across) if self.late else self._tiles(self.step, down, across)
        numbers = _tile(weight, along, below, step, self.grid, side, corner)
        error = numbers * step - weight
        for whole, part in (
            (self.numbers, numbers),
            (self.step, step),
            (self.error, error),
            (self.sums, error + along),
        ):
            whole.view(self.down, self.high, self.across, self.wide)[down, :, across] = part

    def _tiles(self, whole: Tensor, down: Tensor, across: Tensor) -> Tensor:
        return whole.view(self.down, self.high, self.across, self.wide)[down, :, across]

    def _steps(self, values: Tensor, across: Tensor) -> Tensor:
        """The scale of every entry of tiles (b, high, wide)."""
        weights = self.weights.view(self.across, self.wide)[across]
        found = [search_scales(part, share, self.inner) for part, share in zip(values, weights, strict=True)]
        return torch.stack([self.inner.spread(scale, self.wide) for scale in found])


def _tile(
    weight: Tensor, along: Tensor, below: Tensor, step: Tensor, grid: Grid, left: Tensor | None, right: Tensor | None
) -> Tensor:
    """The whole numbers of tiles (b, h, w), with the feedback inside them.

    along, below: what entries beyond the tile to the right, and below it, left; both are updated in place, `along` to
    the sum over all entries to the right. left (b, h, h), right (b, w, w): the tiles' parts of the triangular factors.
    """
    numbers = torch.empty_like(weight)
    if left is None or right is None:
        lower, sums = (right, along) if left is None else (left, below)
        assert lower is not None, "one side has feedback"
        turned = left is not None
        values, steps, found, sums = (x.transpose(1, 2) if turned else x for x in (weight, step, numbers, sums))
        other = along.transpose(1, 2) if turned else below
        for k in range(values.shape[2] - 1, -1, -1):
            at = values[..., k] - sums[..., k] - other[..., k]
            found[..., k] = grid.numbers(at, steps[..., k])
            error = found[..., k] * steps[..., k] - values[..., k]
            sums[..., :k] += error[..., None] * lower[:, None, k, :k]
        return numbers
    high, wide = weight.shape[1:]
    left, right = left.tril(-1), right.tril(-1)
    for place in range(high + wide - 2, -1, -1):
        i = torch.arange(max(0, place - wide + 1), min(place, high - 1) + 1)
        j = place - i
        own, steps, rest = weight[:, i, j], step[:, i, j], along[:, i, j]
        whole = grid.numbers(own - rest - below[:, i, j], steps)
        numbers[:, i, j] = whole
        error = whole * steps - own
        rows, columns = slice(int(i[0]), int(i[-1]) + 1), slice(int(j[-1]), int(j[0]) + 1)
        # each entry has a row and a column of its own
        along[:, rows, : columns.stop] += error[..., None] * right[:, columns, : columns.stop].flip(1)
        below[:, : rows.stop, columns] += ((error + rest).flip(1)[..., None] * left[:, rows, : rows.stop].flip(1)).mT
    return numbers


def _rounded(grid: Grid, numbers: Tensor, scale: Tensor) -> Rounded:
    return Rounded(grid, numbers.to(torch.int8), scale)
