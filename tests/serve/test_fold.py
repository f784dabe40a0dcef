import copy

import pytest
import torch
from architectures import ARCHITECTURES, llama
from lossless import compress

from slimrank.forms import FORMS
from slimrank.forms.ordered import Ordered
from slimrank.serve.fold import Passage, fold_orders, passages

MLP = {
    "llama": [("gate_proj", "up_proj", "down_proj")],
    "gpt2": [("c_fc", "c_proj")],
    "opt": [("fc1", "fc2")],
    "gpt-neox": [("dense_h_to_4h", "dense_4h_to_h")],
    "phi3": [],
}


@pytest.fixture
def tokens():
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "expected"), MLP.items())
def test_channels_may_be_reordered_inside_the_mlp_alone(name, expected):
    model = ARCHITECTURES[name]()
    found = [tuple(one.rpartition(".")[2] for one in (*passage.makers, passage.reader)) for passage in passages(model)]
    assert found == expected * 2


def test_attention_with_as_many_outputs_as_inputs_is_no_passage():
    found = passages(llama(num_key_value_heads=4, num_hidden_layers=1))
    block = "model.layers.0.mlp"
    assert found == [Passage([f"{block}.gate_proj", f"{block}.up_proj"], f"{block}.down_proj")]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("forms", [("pivoted",), ("columns",), ("low_rank", "columns", "pivoted")])
@torch.no_grad()
def test_computes_the_same(name, forms, tokens):
    model = compress(ARCHITECTURES[name](), *forms)
    logits = model(tokens).logits
    fold_orders(model)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-5, atol=1e-5)
    state = model.state_dict()
    again = compress(ARCHITECTURES[name](), *forms)
    again.load_state_dict(state)
    assert not any(layer.in_order for layer in again.modules() if isinstance(layer, Ordered))
    torch.testing.assert_close(again(tokens).logits, logits, rtol=1e-5, atol=1e-5)


def cut(model, form, ranks):
    for name, rank in ranks.items():
        dense = model.get_submodule(name)
        left, values, right = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
        factors = (left * values)[:, :rank], right[:rank]
        if form == "columns":
            rest = torch.arange(3, dense.in_features)
            kept = dense.weight.detach()[:, ::5][:, :3]
            layer = FORMS[form].from_columns(kept, factors[0], factors[1][:, rest], torch.arange(0, 15, 5))
        else:
            layer = FORMS[form].from_low_rank(*factors)
        model.set_submodule(name, layer)
    return model


@torch.no_grad()
def test_frees_one_maker_or_the_reader(tokens):
    mlp = "model.layers.0.mlp"
    for form, names, free in (
        ("pivoted", ("gate_proj", "up_proj", "down_proj"), "gate_proj"),
        ("columns", ("gate_proj", "up_proj", "down_proj"), "down_proj"),
    ):
        model = cut(llama(num_hidden_layers=1), form, {f"{mlp}.{name}": 9 for name in names})
        logits = model(tokens).logits
        assert fold_orders(model) == 1
        assert model.get_submodule(f"{mlp}.{free}").in_order
        torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_a_form_is_reordered_as_its_dense_weight_is(form):
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.randn(*shape, generator=generator) for shape in ((13, 5), (5, 11)))
    bias = torch.randn(13, generator=generator)
    layer = FORMS[form].from_low_rank(left, right, bias)
    if form == "columns":
        columns = torch.randn(13, 4, generator=generator)
        layer = FORMS[form].from_columns(columns, left, right[:, 4:], torch.tensor([1, 2, 7, 9]), bias)
    rows, places = torch.randperm(13, generator=generator), torch.randperm(11, generator=generator)
    x, before, dense = torch.randn(3, 11, generator=generator), copy.deepcopy(layer), layer.dense_weight()
    layer(x)
    layer.permute_outputs(rows)
    layer.permute_inputs(places)
    torch.testing.assert_close(layer.dense_weight(), dense[rows][:, places])
    torch.testing.assert_close(layer(x[:, places]), before(x)[:, rows])
