import pytest
import torch

from slimrank.calibrate import InputMoments
from slimrank.metric.asvd import MeanAbs
from slimrank.numerics.grams import Grams, squared_error
from slimrank.spectrum.decomposition import decompose_weight


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_scales_the_columns_by_the_mean_absolute_input(alpha):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=generator) * torch.tensor([3.0, 1.0, 0.1, 2.0, 5.0, 0.0])
    weight = torch.randn(9, 6, generator=generator)
    inputs = InputMoments.empty(6, x.device)
    inputs.add(x)
    scale = x.double().abs().mean(0) ** alpha
    error = torch.randn(9, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grams = Grams(right=MeanAbs(alpha=alpha).right(inputs))
    assert squared_error(error, grams) == pytest.approx((error * scale).square().sum().item(), rel=1e-6)
    torch.testing.assert_close(
        decompose_weight(weight, grams).values, torch.linalg.svdvals(weight.double() * scale), rtol=1e-5, atol=1e-6
    )
