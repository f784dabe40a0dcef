import pytest
import torch

from slimrank.calibrate.moments import PackedInput
from slimrank.metric import Site
from slimrank.metric.asvd import MeanAbs
from slimrank.numerics.grams import squared_error
from slimrank.spectrum.decomposition import decompose


def site():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator) * torch.tensor([3.0, 1.0, 0.1, 2.0, 5.0, 0.0])
    inputs = PackedInput.empty(6, x.device)
    inputs.add(x)
    return x.double(), Site("q", torch.randn(9, 6, generator=generator), inputs)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scales_the_columns_by_the_mean_absolute_input(alpha):
    x, here = site()
    scale = x.abs().mean(0) ** alpha
    error = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = (error * scale).square().sum().item()
    grams = MeanAbs(alpha=alpha).grams(here)
    assert squared_error(error, grams) == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(
        decompose(here.weight, grams).values, torch.linalg.svdvals(here.weight.double() * scale), rtol=1e-5, atol=1e-6
    )
