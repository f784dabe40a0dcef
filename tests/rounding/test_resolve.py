"""Factors: the re-solve against least squares, and what each step of rounding gains."""

import pytest
import torch

from slimrank.numerics.grams import Grams, squared_error
from slimrank.rounding.grid import Grid
from slimrank.rounding.resolve import even, resolved_left, round_factors
from slimrank.spectrum.decomposition import decompose_weight

from .test_feedback import gram, normal


def test_the_resolved_factor_is_the_least_squares_fit_whatever_weighs_the_outputs():
    target, right, h = normal(9, 14, seed=1), normal(4, 14, seed=2), gram(14, 3)
    root = torch.linalg.cholesky(h)
    expected = torch.linalg.lstsq((right @ root).T, (target @ root).T).solution.T
    assert torch.allclose(resolved_left(target, right, h), expected)
    flat = torch.linspace(1, 2, 14, dtype=torch.float64)
    assert torch.allclose(resolved_left(target, right, flat), resolved_left(target, right, flat.diag()))
    assert torch.allclose(resolved_left(target, right, None), target @ torch.linalg.pinv(right))


def test_even_factors_have_the_same_product_and_columns_of_length_one():
    left, right = normal(6, 3, seed=4), normal(3, 5, seed=5)
    left[:, 1] = 0
    a, b = even(left, right)
    assert torch.allclose(a @ b, left @ right) and a.norm(dim=0).tolist() == pytest.approx([1, 0, 1])


def test_each_step_lowers_the_loss_of_rounded_factors():
    weight, left, right = normal(96, 160, seed=6), gram(96, 7), gram(160, 8)
    grams, rank = Grams(left, right), 48
    cut = decompose_weight(weight, grams, rank=rank)
    least = cut.loss(rank)

    def loss(**options: bool) -> float:
        rounded = round_factors(weight, *cut.cut(rank), grams, Grid(4, 16), **options)
        return squared_error(rounded.weight - weight, grams) - least

    nearest = loss(two_sided=False, feedback=False, resolve=False)
    alone = loss(two_sided=False, resolve=False)
    again = loss(two_sided=False)
    both = loss()
    assert both < 0.8 * again and again < alone < nearest and both < 0.7 * alone
