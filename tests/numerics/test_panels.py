import pytest
import torch

from slimrank.numerics.panels import congruence, product


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [1, 3, 8, 21, 64])
def test_halves_are_the_whole_product(n):
    w, x = random(n, 5), random(5, 9, seed=1)
    made = product(w, (x @ x.T) @ w.T)
    torch.testing.assert_close(made, w @ x @ x.T @ w.T, rtol=1e-12, atol=1e-12)
    assert torch.equal(made, made.T)


@pytest.mark.parametrize("n", [1, 3, 8, 21, 64])
def test_a_congruence_by_a_triangle_is_two_products(n):
    x, lower = random(n, n + 3), random(n, n, seed=1).tril()
    made = congruence(x @ x.T, lower)
    torch.testing.assert_close(made, lower.T @ x @ x.T @ lower, rtol=1e-11, atol=1e-11)
    assert torch.equal(made, made.T)
