"""Feedback against a computation entry by entry, and against the identity that gives its loss."""

import pytest
import torch
from torch import Tensor

from slimrank.errors import SlimrankError
from slimrank.numerics.grams import Grams, squared_error
from slimrank.rounding.feedback import Factor, residue, round_weight
from slimrank.rounding.grid import Grid


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gram(size: int, seed: int) -> Tensor:
    x = normal(2 * size, size, seed=seed) * torch.linspace(1, 3, size, dtype=torch.float64)
    return x.T @ x / len(x) + 0.3


def slowly(weight: Tensor, step: Tensor, grid: Grid, left: Tensor, right: Tensor) -> Tensor:
    """W' entry by entry from the last to the first, each made to leave the least residue."""
    error, (lower, side) = torch.zeros_like(weight), (unit_lower(left), unit_lower(right))
    for i in reversed(range(len(weight))):
        for j in reversed(range(weight.shape[1])):
            value = weight[i, j] - lower[i:, i] @ error[i:, j:] @ side[j:, j]
            number = (value / step[i, j]).round().clamp(grid.low, grid.high)
            error[i, j] = number * step[i, j] - weight[i, j]
    return weight + error


def unit_lower(gram: Tensor) -> Tensor:
    root = torch.linalg.cholesky(gram)
    return root / root.diagonal()


@pytest.mark.parametrize("shape", [(5, 7), (70, 9), (9, 70), (66, 67)])
@pytest.mark.parametrize("sides", ["left", "right", "both"])
@pytest.mark.parametrize("group", [4, 16, 128])
def test_feedback_is_what_rounding_entry_by_entry_gives(shape, sides, group):
    weight, grid = normal(*shape, seed=1), Grid(3, group)
    eyes = [torch.eye(size, dtype=torch.float64) for size in shape]
    left = gram(shape[0], 2) if sides != "right" else None
    right = gram(shape[1], 3) if sides != "left" else None
    rounded = round_weight(weight, grid, Factor.of(left), Factor.of(right))
    step = grid.spread(rounded.scale, shape[1])
    expected = slowly(weight, step, grid, eyes[0] if left is None else left, eyes[1] if right is None else right)
    assert torch.allclose(rounded.weight, expected, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_residues_weighted_are_the_loss(bits):
    weight, left, right = normal(80, 48, seed=4), gram(80, 5), gram(48, 6)
    factors = Factor.of(left), Factor.of(right)
    rounded = round_weight(weight, Grid(bits, 16), *factors)
    error = rounded.weight - weight
    eta = residue(error, *factors)
    weighted = (factors[0].weights[:, None] * factors[1].weights * eta.square()).sum().item()
    assert weighted == pytest.approx(squared_error(error, Grams(left, right)), rel=1e-9)
    step = Grid(bits, 16).spread(rounded.scale, 48)
    unclipped = (rounded.numbers > -(2 ** (bits - 1))) & (rounded.numbers < 2 ** (bits - 1) - 1)
    assert (eta.abs() <= step.abs() / 2 + 1e-9)[unclipped].all()


def optimal_brain(weight: Tensor, step: Tensor, grid: Grid, gram: Tensor) -> Tensor:
    """GPTQ as published, from the last column: each error is spread over the columns left by the inverse Hessian."""
    weight, inverse = weight.clone(), torch.linalg.inv(gram)
    for j in reversed(range(weight.shape[1])):
        now = (weight[:, j] / step[:, j]).round().clamp(grid.low, grid.high) * step[:, j]
        error = (weight[:, j] - now) / inverse[j, j]
        weight[:, :j] -= error[:, None] * inverse[j, :j]
        weight[:, j] = now
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return weight


def test_one_sided_feedback_is_gptq():
    weight, right, grid = normal(12, 40, seed=7), gram(40, 8), Grid(4, 8)
    rounded = round_weight(weight, grid, right=Factor.of(right))
    expected = optimal_brain(weight, grid.spread(rounded.scale, 40), grid, right)
    assert torch.allclose(rounded.weight, expected, atol=1e-9)


def test_each_side_of_feedback_lowers_the_loss():
    weight, left, right, grid = normal(96, 64, seed=9), gram(96, 10), gram(64, 11), Grid(4, 32)
    grams = Grams(left, right)
    sides = [(None, None), (None, right), (left, right)]
    losses = [
        squared_error(round_weight(weight, grid, Factor.of(a), Factor.of(b)).weight - weight, grams) for a, b in sides
    ]
    assert losses[1] < 0.8 * losses[0] and losses[2] < 0.8 * losses[1]


def test_a_diagonal_gram_weighs_the_scales_alone():
    weight, grid = normal(6, 32, seed=12), Grid(3, 16)
    loud = torch.ones(32, dtype=torch.float64)
    loud[5] = 1e6
    rounded = round_weight(weight, grid, right=Factor.of(loud))
    assert (rounded.weight - weight)[:, 5].abs().max() < 0.03
    assert torch.equal(rounded.numbers.double(), grid.numbers(weight, grid.spread(rounded.scale, 32)))


def test_a_singular_gram_is_damped_and_one_with_nan_is_refused():
    flat = torch.ones(5, 5, dtype=torch.float64)
    factor = Factor.of(flat)
    again = factor.lower @ factor.weights.diag() @ factor.lower.T
    assert torch.allclose(again, flat, atol=1e-6)
    with pytest.raises(SlimrankError, match="NaN or Inf"):
        Factor.of(flat * torch.nan)
