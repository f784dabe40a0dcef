import torch

from slimrank.forms import LowRank
from slimrank.numerics.balance import balanced


def test_factors_of_like_scale_have_the_same_product_to_the_bit():
    left, right = torch.randn(6, 3) * torch.tensor([1e6, 1.0, 0.0]), torch.randn(3, 5) * 1e-4
    one, other = balanced(left, right)
    assert torch.equal(one @ other, left @ right) and torch.equal(one[:, 2], left[:, 2])
    shares = one.norm(dim=0)[:2] / other.norm(dim=1)[:2]
    assert ((shares >= 0.5) & (shares <= 2)).all()


def test_float16_holds_factors_whose_scales_are_apart():
    left, right = torch.randn(6, 3) * 1e6, torch.randn(3, 5) * 1e-5
    layer = LowRank.from_low_rank(left, right)
    assert layer.up.weight.half().isfinite().all()
    torch.testing.assert_close(layer.half().dense_weight(), (left @ right).double(), rtol=0, atol=0.05)
