import pytest
import torch

from slimrank.metric import METRICS, Site


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if not metric.gradients])
def test_a_left_gram_that_is_the_identity_is_told_without_the_inputs(name):
    assert METRICS[name]().left_gram(Site("a.q", torch.ones(2, 3), inputs=None)) is None
