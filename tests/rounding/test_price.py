"""Predicted losses against those of weights that were really rounded."""

import pytest
import torch

from slimrank.numerics.grams import Blocks, Grams, squared_error
from slimrank.rounding.feedback import Factor, round_weight
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Weights, dense_price, factors_price
from slimrank.rounding.resolve import round_factors
from slimrank.spectrum.decomposition import decompose_weight

from .test_feedback import gram, normal


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("two_sided", [True, False])
def test_the_price_of_a_dense_weight_is_near_its_loss(bits, two_sided):
    weight, left, right, grid = normal(96, 128, seed=bits), gram(96, 1), gram(128, 2), Grid(bits, 32)
    price = dense_price(weight, grid, Weights.of(left, right, two_sided=two_sided))
    rounded = round_weight(weight, grid, Factor.of(left) if two_sided else None, Factor.of(right))
    loss = squared_error(rounded.weight - weight, Grams(left, right))
    assert price == pytest.approx(loss, rel=0.35 if bits == 2 else 0.15)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("two_sided", [True, False])
def test_the_price_of_factors_is_near_what_rounding_adds_at_every_rank(bits, two_sided):
    weight, left, right, grid = normal(96, 128, seed=3), gram(96, 4), gram(128, 5), Grid(bits, 16)
    grams = Grams(left, right)
    whole = decompose_weight(weight, grams)
    weights = Weights.of(left, right, two_sided=two_sided)
    prices = factors_price(whole.left, whole.right, grid, weights, right)
    assert prices.shape == (97,) and prices[0] == 0
    for rank in (16, 48):
        rounded = round_factors(weight, *whole.cut(rank), grams, grid, two_sided=two_sided)
        added = squared_error(rounded.weight - weight, grams) - whole.loss(rank)
        assert prices[rank].item() == pytest.approx(added, rel=0.25)


def test_blocks_are_weighed_each_by_itself_and_identities_by_ones():
    parts = [gram(4, 6), gram(3, 7)]
    together = Weights.of(Blocks((4, 3), lambda index: parts[index]), None, two_sided=True)
    assert torch.allclose(together.rows, torch.cat([Factor.of(part).weights for part in parts]))
    assert together.columns is None and Weights.of(None, None, two_sided=True).rows is None
    diagonals = torch.cat([part.diagonal() for part in parts])
    one_sided = Weights.of(Blocks((4, 3), lambda index: parts[index]), None, two_sided=False)
    assert torch.equal(one_sided.rows, diagonals)
