"""Scales against a search over a fine grid of them."""

import pytest
import torch

from slimrank.errors import UsageError
from slimrank.rounding.grid import Grid, search_scales


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_scales_lose_no_more_than_a_fine_search(bits):
    values, weights, grid = normal(7, 40, seed=bits), normal(40, seed=1).square() + 0.1, Grid(bits, 16)
    step = grid.spread(search_scales(values, weights, grid), 40)
    error = ((grid.numbers(values, step) * step - values).square() * weights).sum()
    best = torch.tensor(0.0, dtype=torch.float64)
    for part, share in zip(values.split(16, 1), weights.split(16), strict=True):
        tried = torch.linspace(0.02, 1.2, 3000, dtype=torch.float64)[:, None, None] * part.abs().amax(1, keepdim=True)
        tried = torch.cat([tried, -tried]) / grid.high
        errors = ((grid.numbers(part, tried) * tried - part).square() * share).sum(2)
        best = best + errors.amin(0).sum()
    assert error <= (1.15 if bits < 8 else 3) * best


def test_scales_are_bfloat16_numbers_and_zeros_are_exact():
    values = torch.cat([normal(3, 20, seed=2), torch.zeros(2, 20, dtype=torch.float64)])
    grid = Grid(4, 8)
    scale = search_scales(values, None, grid)
    assert scale.shape == (5, 3) and torch.equal(scale, scale.bfloat16().double()) and (scale != 0).all()
    assert not grid.numbers(values, grid.spread(scale, 20))[3:].any()


def test_the_longer_end_is_used_on_the_side_of_the_largest_value():
    values = torch.tensor([[3.0, -4, 1, 2], [4, -3, 1, 2]], dtype=torch.float64)
    scale = search_scales(values, None, Grid(4))
    assert torch.equal(Grid(4).numbers(values, scale) * scale, values)


def test_a_group_wider_than_the_row_is_the_row():
    assert Grid(4, 128).width(40) == 40 and Grid(4, 128).groups(40) == 1 and Grid(4, 32).groups(40) == 2
    assert Grid(8).groups(40) == 1 and (Grid(3).low, Grid(3).high) == (-4, 3)


def test_an_unknown_width_is_refused():
    with pytest.raises(UsageError, match="A width of 5 bits is unknown: choose one of 2, 3, 4, 8"):
        Grid(5)
