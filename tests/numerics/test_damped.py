import pytest
import torch

from slimrank.errors import SlimrankError
from slimrank.numerics.damped import factor_, solved


def gram(n, rank, seed=0):
    x = torch.randn(n, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x @ x.T / rank


def test_factors_the_gram_with_so_much_of_its_mean_diagonal_more():
    h = gram(6, 3)
    factor = factor_(h.clone(), 0.1)
    torch.testing.assert_close(factor @ factor.T, h + 0.1 * h.trace() / 6 * torch.eye(6).double())
    assert factor.triu(1).eq(0).all()


def test_damps_more_until_rounding_no_longer_shows():
    h = gram(6, 3) - 1e-7 * torch.eye(6).double()
    factor = factor_(h.clone(), 0.0)
    added = (factor @ factor.T - h).diagonal().mean() / (h.trace() / 6)
    assert 1e-7 < added < 1e-5


def test_a_gram_of_zeros_becomes_its_damping():
    factor = factor_(torch.zeros(3, 3, dtype=torch.float64), 0.25)
    assert factor.equal(0.5 * torch.eye(3, dtype=torch.float64))


def test_refuses_what_no_damping_helps():
    with pytest.raises(SlimrankError, match="Refinement met NaN or Inf"):
        factor_(torch.full((3, 3), torch.nan, dtype=torch.float64), 0.1)


def test_solved_is_the_product_with_the_inverse():
    h, x = gram(5, 9), torch.randn(4, 5, dtype=torch.float64)
    torch.testing.assert_close(solved(x, factor_(h.clone(), 0.0)), x @ torch.linalg.inv(h))
