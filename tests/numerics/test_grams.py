import torch

from slimrank.numerics.grams import Grams, square_root, squared_error, times


def gram(n, rank=None, seed=0):
    x = torch.randn(n, rank or 3 * n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x @ x.T


def test_squared_error_is_the_norm_of_the_weighted_error():
    error = torch.randn(6, 9, dtype=torch.float64)
    g, h = gram(6), gram(9, seed=1)
    weighted = torch.linalg.cholesky(g).T @ error @ torch.linalg.cholesky(h)
    assert abs(squared_error(error, Grams(g, h)) / weighted.square().sum().item() - 1) < 1e-12
    assert abs(squared_error(error, Grams()) / error.square().sum().item() - 1) < 1e-12
    diagonal = Grams(g.diagonal(), h.diagonal())
    assert (
        abs(squared_error(error, diagonal) / squared_error(error, Grams(g.diagonal().diag(), h.diagonal().diag())) - 1)
        < 1e-12
    )


def test_square_root_and_its_inverse_whiten():
    h = gram(7)
    root, inverse = square_root(h)
    torch.testing.assert_close(root @ root, h)
    torch.testing.assert_close(inverse @ h @ inverse, torch.eye(7, dtype=torch.float64), rtol=0, atol=1e-6)


def test_square_root_of_a_singular_gram_lives_on_its_support():
    h = gram(7, rank=3)
    root, inverse = square_root(h)
    torch.testing.assert_close(root @ root, h)
    torch.testing.assert_close(inverse @ root @ inverse @ root, inverse @ root)
    assert torch.linalg.matrix_rank(root) == 3


def test_a_vector_is_a_diagonal_and_none_the_identity():
    v, x = torch.tensor([4.0, 0.0, 9.0]), torch.randn(3, 2)
    torch.testing.assert_close(times(v, x), v.diag() @ x)
    assert times(None, x) is x
    root, inverse = square_root(v)
    assert root.tolist() == [2, 0, 3] and inverse.tolist() == [0.5, 0, torch.tensor(1 / 3).item()]


def test_rounding_makes_no_error_negative():
    gram = torch.diag(torch.tensor([1.0, -1e-18], dtype=torch.float64))  # as a sum of squares may come out
    assert squared_error(torch.tensor([[0.0, 1.0]]), Grams(None, gram)) == 0.0
    assert squared_error(torch.tensor([[2.0, 1.0]]), Grams(None, gram)) == 4.0
