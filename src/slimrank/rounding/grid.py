"""Grids of few bits: whole numbers times a scale that a group of inputs shares, and the search of the scales."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import pad

from slimrank.errors import UsageError

WIDTHS = (2, 3, 4, 8)
LEAST = {2: 0.3, 3: 0.4, 4: 0.55, 8: 0.94}
"""By width, the least scale that is tried, as a share of the one at which nothing is clipped."""

STEPS = {2: 15, 3: 13, 4: 10, 8: 4}
LEAST_MEAN = 1e-300
PIECE = 2**18  # numbers of all tried scales at a time


@dataclass(frozen=True)
class Grid:
    """Values q s: q whole, from -2^(bits - 1) to 2^(bits - 1) - 1, s of either sign for every `group` inputs of a row.

    group: None for one scale in a row. Scales are rounded to bfloat16's 8 binary digits, which float16 holds too.
    """

    bits: int
    group: int | None = None

    def __post_init__(self) -> None:
        if self.bits not in WIDTHS:
            raise UsageError(f"A width of {self.bits} bits is unknown: choose one of {', '.join(map(str, WIDTHS))}.")

    @property
    def low(self) -> int:
        """The least whole number."""
        return -(2 ** (self.bits - 1))

    @property
    def high(self) -> int:
        """The largest whole number."""
        return 2 ** (self.bits - 1) - 1

    def width(self, columns: int) -> int:
        """How many inputs share a scale in a row of `columns` of them."""
        return min(self.group or columns, columns) or 1

    def groups(self, columns: int) -> int:
        """How many scales a row of `columns` inputs has."""
        return -(-columns // self.width(columns))

    def numbers(self, values: Tensor, scale: Tensor) -> Tensor:
        """The whole numbers nearest to values / scale, of one shape."""
        return (values / scale).round_().clamp_(self.low, self.high)

    def spread(self, scale: Tensor, columns: int) -> Tensor:
        """The scale of every input (m, columns) from one for each group (m, groups)."""
        return scale.repeat_interleave(self.width(columns), 1)[:, :columns]


@dataclass(frozen=True)
class Rounded:
    """A weight (m, n) on a grid: numbers (m, n) int8, and scale (m, groups) float64."""

    grid: Grid
    numbers: Tensor
    scale: Tensor

    @cached_property
    def weight(self) -> Tensor:
        """q s (m, n), float64."""
        return self.numbers.double() * self.grid.spread(self.scale, self.numbers.shape[1])


def search_scales(values: Tensor, weights: Tensor | None, grid: Grid) -> Tensor:
    """A scale (m, groups) for every group of values (m, n), with little sum of weights e^2 over its rounding errors e.

    weights: of the columns (n,), None for equal ones. Scales of both signs are tried, since -2^(b - 1) is farther out
    than 2^(b - 1) - 1, from the one that clips nothing down to LEAST of it; the best is fitted to its own numbers by
    least squares where that is better.
    """
    rows, columns = values.shape
    width, groups, exact = grid.width(columns), grid.groups(columns), values.dtype
    blank, values = groups * width - columns, values.float()
    weights = (
        values.new_ones(columns) if weights is None else (weights / weights.mean().clamp_min(LEAST_MEAN)).to(values)
    )
    share = pad(weights, (0, blank)).view(groups, width)
    blocks = pad(values, (0, blank)).view(rows, groups, width)
    at_once = max(1, PIECE // (2 * STEPS[grid.bits] * groups * width))
    return torch.cat([_best(part, share, grid) for part in blocks.split(at_once)]).to(exact)


def _best(values: Tensor, weights: Tensor, grid: Grid) -> Tensor:
    """The scale (m, groups) for values (m, groups, width) and weights (groups, width)."""
    peak = values.gather(2, values.abs().argmax(2, keepdim=True))
    whole = torch.where(peak == 0, 1.0, peak)
    ends = torch.cat([whole / grid.low, whole / grid.high], 2)
    shrunk = torch.linspace(1, LEAST[grid.bits], STEPS[grid.bits], dtype=values.dtype, device=values.device)
    tried = _stored((ends[..., None] * shrunk).flatten(2))  # (m, groups, tries)
    errors = _error(values[:, :, None], weights[:, None], tried[..., None], grid)
    scale = tried.gather(2, errors.argmin(2, keepdim=True))
    least = errors.amin(2)
    numbers = grid.numbers(values, scale)
    energy = (weights * numbers.square()).sum(2)
    fitted = _stored((weights * numbers * values).sum(2) / torch.where(energy > 0, energy, 1.0))
    usable = (energy > 0) & (fitted != 0)
    fitted = torch.where(usable, fitted, scale[..., 0])
    better = _error(values, weights, fitted[..., None], grid) < least
    return torch.where(better, fitted, scale[..., 0])


def _error(values: Tensor, weights: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """The weighted squared error over the last axis."""
    return ((grid.numbers(values, scale) * scale - values).square_() * weights).sum(-1)


def _stored(scale: Tensor) -> Tensor:
    """A scale as it is stored."""
    return scale.bfloat16().to(scale.dtype)
