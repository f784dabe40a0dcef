from dataclasses import replace

import pytest
import torch
from tiny_spectra import spectra

from slimrank.calibrate import OutputMoments
from slimrank.errors import SlimrankError
from slimrank.metric.fwsvd import FisherRows
from slimrank.numerics.gram_sum import GramSum
from slimrank.numerics.grams import Grams, squared_error
from slimrank.spectrum.decomposition import decompose_weight

WEIGHT = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def outputs(rows):
    return OutputMoments(GramSum.of(torch.eye(len(rows))), rows, fourth=torch.tensor(0.0))


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def grams(fisher_rows, **options):
    return Grams(FisherRows(**options).left(outputs(fisher_rows)), FisherRows(**options).right(None))


def test_an_error_counts_by_the_damped_row_sums():
    fisher = rows(4.0, 0.0, 1.0, 3.0)
    error = torch.arange(24.0, dtype=torch.float64).reshape(4, 6)
    expected = ((fisher + 0.01 * 2.0)[:, None] * error**2).sum().item()
    assert squared_error(error, grams(fisher, damping=0.01)) == pytest.approx(expected, rel=1e-12)


def test_a_row_without_fisher_information_survives_at_full_rank_and_stays_finite_below():
    found = decompose_weight(WEIGHT, grams(rows(4.0, 0.0, 1.0, 3.0)))
    left, right = found.cut(4)
    torch.testing.assert_close(left @ right, WEIGHT, rtol=0, atol=1e-10)
    assert all(torch.isfinite(factor).all() for factor in found.cut(2))


def test_it_is_the_svd_of_the_row_weighted_matrix():
    fisher = rows(4.0, 0.5, 1.0, 3.0)
    values = torch.linalg.svdvals((fisher + 1e-3 * fisher.mean()).sqrt()[:, None] * WEIGHT)
    torch.testing.assert_close(decompose_weight(WEIGHT, grams(fisher)).values, values)


def test_no_gradient_is_an_error_that_names_the_linear(tiny_llama):
    made = spectra(tiny_llama(), FisherRows())
    unit = next(iter(made.curves))
    moments = replace(made.evidence.moments, outputs={unit.leader: outputs(torch.zeros(32).double())})
    with pytest.raises(SlimrankError, match=r"At model\.layers\.0\.self_attn\.q_proj: The loss has no gradient there"):
        replace(made, evidence=replace(made.evidence, moments=moments)).left(unit)
