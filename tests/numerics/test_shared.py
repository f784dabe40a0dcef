"""One factor for all experts, against least squares solved for each by itself."""

import pytest
import torch

from slimrank.errors import SlimrankError
from slimrank.numerics.grams import Grams
from slimrank.numerics.projector import Small, eigenvectors
from slimrank.numerics.shared import Part, directions, own_factor, saved, values

M, N = 9, 7


@pytest.fixture
def experts():
    """Weights, left and right Grams of 4 experts, the last of which sees inputs in 3 of 7 directions."""
    generator = torch.Generator().manual_seed(0)

    def spread(width, tokens):
        x = torch.randn(width, tokens, generator=generator, dtype=torch.float64)
        return x @ x.T / tokens

    weights = [torch.randn(M, N, generator=generator, dtype=torch.float64) for _ in range(4)]
    return weights, [spread(M, 40) for _ in range(4)], [(e + 1) * spread(N, 30 if e < 3 else 3) for e in range(4)]


def parts_of(experts, side):
    return lambda: (Part.of(weight, Grams(left, right), side) for weight, left, right in zip(*experts, strict=True))


def root(gram):
    found, vectors = torch.linalg.eigh(gram)
    return (vectors * found.clamp_min(0).sqrt()) @ vectors.T


@pytest.mark.parametrize("side", ["input", "output"])
def test_the_curve_is_the_error_of_the_best_own_factors_at_every_rank(experts, side):
    parts = parts_of(experts, side)
    rows = directions(parts)
    found = values(parts, rows)
    for rank in range(len(rows) + 1):
        error = 0.0
        for weight, left, right in zip(*experts, strict=True):
            basis = rows[:rank].T
            if side == "input":  # min over C of |L^T (W - C V) R|, with L invertible
                whitened, known = root(right) @ weight.T, root(right) @ basis
                rest = root(left) @ (weight.T - basis @ torch.linalg.lstsq(known, whitened, driver="gelsd").solution).T
                error += (rest @ root(right)).square().sum().item()
            else:
                whitened, known = root(left) @ weight, root(left) @ basis
                rest = weight - basis @ torch.linalg.lstsq(known, whitened, driver="gelsd").solution
                error += (root(left) @ rest @ root(right)).square().sum().item()
        assert found[rank:].square().sum().item() == pytest.approx(error, rel=1e-6, abs=1e-6 * len(rows))


@pytest.mark.parametrize("side", ["input", "output"])
def test_own_factors_leave_the_error_that_the_curve_says(experts, side):
    parts = parts_of(experts, side)
    rows = directions(parts)
    for part, (weight, left, right) in zip(parts(), zip(*experts, strict=True), strict=True):
        own = own_factor(part, rows[:4])
        error = weight - own @ rows[:4] if side == "input" else weight - (own @ rows[:4]).T
        whole = torch.trace(left @ weight @ right @ weight.T).item()
        left_over = torch.trace(left @ error @ right @ error.T).item()
        assert whole - left_over == pytest.approx(saved(part, rows[:4]).sum().item(), rel=1e-6)


def test_experts_with_one_gram_have_the_stacked_weights_singular_values(experts):
    weights, lefts, rights = experts
    same = [rights[0] for _ in weights]
    parts = parts_of((weights, lefts, same), "input")
    stacked = Small(torch.cat(weights), Grams(torch.block_diag(*lefts), rights[0]))
    expected, _ = eigenvectors(stacked.square())
    torch.testing.assert_close(values(parts, directions(parts)), expected, rtol=1e-8, atol=1e-8)


def test_one_output_gram_for_all_is_solved_exactly_too(experts):
    weights, _, rights = experts
    parts = parts_of((weights, [None] * 4, rights), "output")
    square = sum(weight @ right @ weight.T for weight, right in zip(weights, rights, strict=True))
    expected = torch.linalg.eigvalsh(square).flip(0).clamp_min(0).sqrt()
    torch.testing.assert_close(values(parts, directions(parts)), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("side", ["input", "output"])
def test_diagonal_grams_are_those_matrices(experts, side):
    weights, lefts, rights = experts
    plain = [gram.diagonal() for gram in lefts], [gram.diagonal() for gram in rights]
    full = [[diagonal.diag() for diagonal in grams] for grams in plain]
    found, expected = (
        values(parts, directions(parts)) for parts in (parts_of((weights, *grams), side) for grams in (plain, full))
    )
    torch.testing.assert_close(found, expected)


def test_not_a_number_is_an_error_and_no_endless_search(experts):
    weights, lefts, rights = experts
    rows = directions(parts_of(experts, "input"))
    bad = Part(weights[0], lefts[0], rights[0] * torch.nan)
    with pytest.raises(SlimrankError, match="NaN"):
        own_factor(bad, rows)
