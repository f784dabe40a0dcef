import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.allocate.shares import min_max, scaled_to

weights = st.lists(st.tuples(st.floats(1e-3, 1e3), st.integers(1, 1000)), min_size=1, max_size=10)


@given(weights, st.floats(0.001, 0.999))
@settings(max_examples=60, deadline=None)
def test_the_mean_is_met_within_the_clip_and_the_others_keep_their_proportion(items, mean):
    values, sizes = (torch.tensor(column).double() for column in zip(*items, strict=True))
    found = scaled_to(values, sizes, mean)
    assert ((found * sizes).sum() / sizes.sum()).item() == pytest.approx(mean, rel=1e-9)
    assert (found >= 0).all() and (found <= 1).all()
    free = found < 1
    ratios = (found / values)[free]
    if len(ratios):
        torch.testing.assert_close(ratios, ratios[:1].expand_as(ratios), rtol=1e-9, atol=0)
        assert (values[~free] * ratios[0] >= 1 - 1e-9).all()


def test_a_mean_outside_the_clip_is_given_to_all():
    assert scaled_to(torch.tensor([1.0, 2.0]), torch.ones(2), 0.2, 0.3, 0.98).tolist() == pytest.approx([0.2, 0.2])


def test_what_the_clip_takes_is_spread_over_the_others():
    found = scaled_to(torch.tensor([8.0, 1.0, 1.0]).double(), torch.ones(3).double(), 0.5)
    assert found.tolist() == pytest.approx([1.0, 0.25, 0.25])


def test_min_max():
    assert min_max(torch.tensor([2.0, 4.0, 3.0])).tolist() == [0, 1, 0.5]
    assert min_max(torch.tensor([2.0, 2.0])).tolist() == [0.5, 0.5]
