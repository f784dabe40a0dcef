import pytest
import torch

from slimrank.factorize import Target
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.forms import Pivoted
from slimrank.metric import Grams
from slimrank.spectrum.decomposition import decompose


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_the_cost_is_what_is_stored_and_the_weight_is_the_cut(shape, rank):
    dense = torch.nn.Linear(shape[1], shape[0])
    decomposition = decompose(dense.weight.detach(), Grams())
    layer = PivotedFactorizer().build(Target(dense, dense.weight.detach(), Grams(), decomposition), rank)
    linears = [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    stored = sum(w.numel() for w in linears) + layer.chosen.numel()
    assert PivotedFactorizer().cost(shape, rank) == stored
    assert stored == Pivoted.count_parameters(*shape, layer.entry())
    u, s, v = torch.linalg.svd(dense.weight.detach().double())
    best = u[:, :rank] * s[:rank] @ v[:rank]
    torch.testing.assert_close(layer.dense_weight(), best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.bias, dense.bias)


def test_the_rank_for_a_budget_is_the_largest_that_costs_no_more():
    form = PivotedFactorizer()
    costs = {rank: form.cost((20, 12), rank) for rank in range(1, 13)}
    for budget in range(0, 300, 7):
        assert form.rank_for((20, 12), budget) == max((r for r, c in costs.items() if c <= budget), default=0)
