from dataclasses import replace

import pytest
import torch

from slimrank.calibrate import OutputMoments
from slimrank.calibrate.moments import PackedInput
from slimrank.errors import SlimrankError
from slimrank.metric import Site
from slimrank.metric.fwsvd import FisherRows
from slimrank.numerics.grams import squared_error
from slimrank.spectrum.decomposition import decompose


def site(rows):
    weight = torch.randn(len(rows), 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = PackedInput.empty(6, torch.device("cpu"))
    return Site("a.q", weight, inputs, outputs=OutputMoments(torch.eye(len(rows)).double(), rows))


def test_an_error_counts_by_the_damped_row_sums():
    rows = torch.tensor([4.0, 0.0, 1.0, 3.0], dtype=torch.float64)
    error = torch.arange(24.0, dtype=torch.float64).reshape(4, 6)
    expected = ((rows + 0.01 * 2.0)[:, None] * error**2).sum().item()
    assert squared_error(error, FisherRows(damping=0.01).grams(site(rows))) == pytest.approx(expected, rel=1e-12)


def test_a_row_without_fisher_information_survives_at_full_rank_and_stays_finite_below():
    here = site(torch.tensor([4.0, 0.0, 1.0, 3.0], dtype=torch.float64))
    found = decompose(here.weight, FisherRows().grams(here))
    left, right = found.cut(4)
    torch.testing.assert_close(left @ right, here.weight, rtol=0, atol=1e-10)
    assert all(torch.isfinite(factor).all() for factor in found.cut(2))


def test_it_is_the_svd_of_the_row_weighted_matrix():
    rows = torch.tensor([4.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    here = site(rows)
    values = torch.linalg.svdvals((rows + 1e-3 * rows.mean()).sqrt()[:, None] * here.weight)
    torch.testing.assert_close(decompose(here.weight, FisherRows().grams(here)).values, values)


def test_no_gradient_is_an_error_that_names_the_linear():
    with pytest.raises(SlimrankError, match=r"no gradient at a\.q"):
        FisherRows().grams(site(torch.zeros(4, dtype=torch.float64)))


def test_the_left_gram_needs_no_inputs():
    rows = torch.tensor([4.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    assert FisherRows().left_gram(replace(site(rows), inputs=None)).equal(rows + 1e-3 * rows.mean())
