import copy

import pytest
import torch
from architectures import ARCHITECTURES, llama
from joined import join
from torch import nn

from slimrank.errors import SlimrankError
from slimrank.forms import compressed_layers, link
from slimrank.forms.bits import unpack
from slimrank.forms.joint import Joint, joint_layers
from slimrank.serve.fold import fold_orders
from slimrank.serve.optimize import optimize, shared_inputs

SIZES = (6, 9, 4)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def layers(rank: int = 5, biased: bool = False) -> tuple[list[Joint], torch.Tensor, list[torch.Tensor | None]]:
    """A group of three, the stacked weight, and the biases."""
    left, right = random(sum(SIZES), rank), random(rank, 8)
    biases = [random(size) if biased else None for size in SIZES]
    return joint_layers(left, right, SIZES, biases, "q"), left @ right, biases


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rank", [1, 5, 8])
def test_together_they_are_the_stacked_product_in_as_many_numbers_as_one_pivoted_layer(rank, biased):
    group, weight, biases = layers(rank, biased)
    x = random(2, 3, 8)
    for layer, part, bias in zip(group, weight.split(SIZES), biases, strict=True):
        torch.testing.assert_close(layer.dense_weight(), part, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, part, bias), rtol=1e-10, atol=1e-10)
    stored = sum(tensor.numel() for layer in group for tensor in layer.state_dict().values())
    counted = sum(layer.count_parameters(layer.out_features, 8, layer.entry()) for layer in group)
    assert counted == stored - sum(bias.numel() for bias in biases if bias is not None)
    assert counted == rank * (sum(SIZES) + 8 - rank) + 1 + 2 + 1  # bytes of 6, 9 and 4 bits


def test_the_pivots_are_rows_of_the_stack_in_the_members_order():
    group, weight, _ = layers()
    chosen = torch.cat([unpack(layer.chosen, layer.out_features) for layer in group])
    torch.testing.assert_close(group[0].pivots.weight, weight[chosen], rtol=1e-10, atol=1e-10)
    assert [layer.first for layer in group] == [0, group[0].own, group[0].own + group[1].own]
    assert [layer.leads for layer in group] == [True, False, False]
    assert all(layer.right is group[0].pivots for layer in group)


def test_the_shared_product_is_computed_once_and_let_go_of():
    group, _, _ = layers()
    calls = []
    group[0].pivots.register_forward_hook(lambda *_: calls.append(1))
    x = random(4, 8)
    in_turn = [layer(x) for layer in group]
    assert len(calls) == 1 and group[0].held is None
    alone = [layer(x.clone()) for layer in reversed(group)]  # in another order, with other tensors
    for one, other in zip(in_turn, reversed(alone), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_second_pass_does_not_see_the_first_ones_product():
    group, _, _ = layers()
    x = random(4, 8)
    group[0](x)
    with torch.no_grad():
        group[0].pivots.weight.mul_(2)
    doubled = group[0](x), group[1](x)
    for layer, y in zip(group, doubled, strict=False):
        torch.testing.assert_close(y, nn.functional.linear(x, layer.dense_weight()), rtol=1e-10, atol=1e-10)


def test_every_parameter_gets_the_gradient_of_the_dense_product():
    group, weight, _ = layers()
    x = random(4, 8)
    sum((number + 1) * layer(x).square().sum() for number, layer in enumerate(group)).backward()
    outputs = [(number + 1) * 2 * (x @ part.T) for number, part in enumerate(weight.split(SIZES))]
    expected = sum(layer.left().T @ (y.T @ x) for layer, y in zip(group, outputs, strict=True))
    torch.testing.assert_close(group[0].pivots.weight.grad, expected, rtol=1e-9, atol=1e-9)
    assert all(p.grad is not None and p.grad.any() for layer in group for p in layer.parameters())


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in ("gpt2", "phi3", "gpt-neox")])
@torch.no_grad()
def test_a_model_with_joined_linears_is_the_same_also_copied_folded_and_packed(name):
    tokens = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    dense = ARCHITECTURES[name]()
    logits, model = dense(tokens).logits, join(copy.deepcopy(dense))
    assert any(isinstance(module, Joint) for module in model.modules())
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-5)
    copied = copy.deepcopy(model)
    for layer in copied.modules():
        if isinstance(layer, Joint) and layer.leads:
            layer.pivots.weight.zero_()
    assert not torch.allclose(copied(tokens).logits, logits)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-5)
    fold_orders(model)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-5)
    optimize(model)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradients_are_the_same_with_checkpointed_activations(reentrant):
    tokens, found = torch.arange(3, 23)[None], []
    for checkpointed in (False, True):
        model = join(llama(), rank=12).train()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
            model.enable_input_require_grads()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7)


def test_fold_frees_a_joined_maker_and_optimize_packs_what_reads_the_shared_product():
    model = join(llama(num_hidden_layers=1), rank=16)
    assert fold_orders(model) >= 1 and model.model.layers[0].mlp.gate_proj.in_order
    block = "model.layers.0"
    assert [f"{block}.mlp.{name}_proj.others" for name in ("gate", "up")] in shared_inputs(model)


def test_compiles_as_one_graph():
    model = join(llama(num_hidden_layers=1)).model.layers[0].mlp
    x = torch.randn(1, 3, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), copy.deepcopy(model)(x), rtol=1e-5, atol=1e-5)


def test_exports_without_leaving_the_exports_tensors_behind():
    mlp = join(llama(num_hidden_layers=1)).model.layers[0].mlp
    x = torch.randn(1, 3, 32)
    exported = torch.export.export(mlp, (x,), strict=False)
    torch.testing.assert_close(exported.module()(x), mlp(x), rtol=1e-5, atol=1e-5)


def test_shells_are_linked_by_their_entries():
    model = join(llama(num_hidden_layers=1))
    x, mlp = torch.randn(1, 3, 32), model.model.layers[0].mlp
    entries = compressed_layers(mlp)
    assert entries["up_proj"]["leader"] == "gate_proj" and "leader" not in entries["gate_proj"]
    again = llama(num_hidden_layers=1).model.layers[0].mlp
    for name, entry in entries.items():
        again.set_submodule(name, Joint.shell(again.get_submodule(name), entry))
    again.load_state_dict(mlp.state_dict(), strict=False)
    again.down_proj = mlp.down_proj
    with pytest.raises(SlimrankError, match="wasn't linked to its leader, gate_proj"):
        again(x)
    link(again)
    assert torch.equal(again(x), mlp(x))


def test_a_group_that_is_not_whole_is_refused_by_name():
    model = join(llama(num_hidden_layers=1))
    mlp = model.model.layers[0].mlp
    mlp.gate_proj = nn.Linear(32, 48)
    with pytest.raises(SlimrankError, match=r"share the pivots of model\.layers\.0\.mlp\.gate_proj are not all there"):
        link(model)


@pytest.mark.parametrize(
    "wrong", [{"own": 7}, {"first": -1}, {"first": 4, "own": 3}, {"own": "2"}, {"first": None}, {"leader": 3}]
)
def test_an_entry_that_cannot_be_is_one_sentence(wrong):
    entry = {"rank": 5, "first": 0, "own": 2, **wrong}
    with pytest.raises(SlimrankError, match="joint layer of 6 outputs and rank 5"):
        Joint.shell(nn.Linear(8, 6), entry)
