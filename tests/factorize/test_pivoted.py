import pytest
import torch

from slimrank.factorize import Target
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.forms import FORMS, Pivoted
from slimrank.numerics.grams import Grams
from slimrank.spectrum.decomposition import decompose_weight


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("rank", [1, 5, 11])
def test_the_cost_is_what_is_stored_and_the_weight_is_the_cut(shape, rank):
    dense = torch.nn.Linear(shape[1], shape[0])
    decomposition = decompose_weight(dense.weight.detach(), Grams())
    form, target = PivotedFactorizer(), Target([dense], dense.weight.detach(), Grams(), decomposition, "dense")
    built = form.build(target, rank)
    (layer,) = built.layers
    linears = [m.weight for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    stored = sum(w.numel() for w in linears) + layer.chosen.numel()
    assert form.cost([shape], rank) == sum(form.costs([shape], rank)) == stored
    assert stored == Pivoted.count_parameters(*shape, layer.entry())
    u, s, v = torch.linalg.svd(dense.weight.detach().double())
    best = u[:, :rank] * s[:rank] @ v[:rank]
    torch.testing.assert_close(layer.dense_weight(), best, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.bias, dense.bias)
    assert built.loss == pytest.approx(s[rank:].square().sum().item())


def test_the_rank_for_a_budget_is_the_largest_that_costs_no_more():
    form = PivotedFactorizer()
    costs = {rank: form.cost([(20, 12)], rank) for rank in range(1, 13)}
    for budget in range(0, 300, 7):
        assert form.rank_for([(20, 12)], budget) == max((r for r, c in costs.items() if c <= budget), default=0)


@pytest.mark.parametrize("rank", [1, 6, 12])
def test_of_several_linears_the_stacked_weight_is_pivoted_and_stored_once(rank):
    dense, form = [torch.nn.Linear(12, rows, bias=False) for rows in (9, 5, 7)], PivotedFactorizer(joint=True)
    weight, shapes = torch.cat([one.weight.detach() for one in dense]), [(9, 12), (5, 12), (7, 12)]
    decomposition = decompose_weight(weight, Grams())
    built = form.build(Target(dense, weight, Grams(), decomposition, "q"), rank)
    stored = [sum(t.numel() for t in layer.state_dict().values()) for layer in built.layers]
    counted = [
        FORMS[one.form].count_parameters(*shape, one.entry()) for one, shape in zip(built.layers, shapes, strict=True)
    ]
    assert stored == counted and sum(stored) == form.cost(shapes, rank) == sum(form.costs(shapes, rank))
    found = torch.cat([layer.dense_weight() for layer in built.layers])
    left, right = decomposition.cut(rank)
    torch.testing.assert_close(found, left @ right, atol=1e-5, rtol=1e-5)
    assert built.loss == pytest.approx((weight - left @ right).square().sum().item(), abs=1e-9)
