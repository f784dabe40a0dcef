import pytest
import torch
from architectures import ARCHITECTURES, VOCABULARY
from collected import collect, collect_gradients

from slimrank.errors import SlimrankError
from slimrank.model.decoder import Decoder


@pytest.fixture
def ids():
    return torch.randint(0, 320, (70, 64), generator=torch.Generator().manual_seed(1))  # more than one batch


@pytest.fixture
def decoder(tiny_llama):
    return Decoder(tiny_llama())


def record(model, linears):
    """Every linear's inputs and outputs in one plain forward pass."""
    seen = {}
    for name, module in linears.items():
        module.register_forward_hook(lambda m, args, out, name=name: seen.__setitem__(name, (args[0], out)))
    return seen


def test_grams_are_those_of_a_plain_forward_pass(decoder, ids):
    linears = decoder.linears()
    moments = collect(decoder, ids, linears)
    flat = {name: module for block in linears for name, module in block.items()}
    seen = record(decoder.model, flat)
    decoder.model(input_ids=ids)
    for name in flat:
        x = seen[name][0].detach().reshape(-1, seen[name][0].shape[-1]).double()
        found = moments.input_of(name)
        torch.testing.assert_close(found.gram(), x.T @ x, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(found.absolute, x.abs().sum(0), rtol=1e-5, atol=1e-3)
        assert found.tokens == len(x) == 70 * 64


def test_one_gram_per_distinct_input(decoder, ids):
    moments = collect(decoder, ids[:2], decoder.linears())
    assert len(moments.inputs) == 2 * 4 and len(moments.leader) == 2 * 7
    attention = "model.layers.0.self_attn."
    assert {moments.leader[attention + n] for n in ("q_proj", "k_proj", "v_proj")} == {attention + "q_proj"}
    assert moments.leader["model.layers.1.mlp.up_proj"] == "model.layers.1.mlp.gate_proj"


def test_block_outputs(decoder, ids):
    moments = collect(decoder, ids, decoder.linears(), blocks=True)
    states = decoder.model(input_ids=ids, output_hidden_states=True).hidden_states
    h, before = states[1].detach().flatten(0, 1).double(), states[0].detach().flatten(0, 1).double()
    torch.testing.assert_close(moments.blocks[0].gram(), h.T @ h, rtol=1e-4, atol=1e-3)
    cosine = torch.nn.functional.cosine_similarity(before, h, dim=-1).sum().item()
    assert moments.blocks[0].cosine.item() == pytest.approx(cosine, rel=1e-5)
    assert list(moments.blocks) == [0, 1] and not collect(decoder, ids[:2], decoder.linears()).blocks


def test_gradients_are_autograds(decoder, ids):
    ids, linears = ids[:5], decoder.linears()
    moments = collect(decoder, ids, linears)
    collect_gradients(decoder, ids, linears, moments)
    flat = {name: module for block in linears for name, module in block.items()}
    seen = record(decoder.model, flat)
    logits = decoder.model(input_ids=ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    for name, module in flat.items():
        (g,) = torch.autograd.grad(losses.sum(), seen[name][1], retain_graph=True)
        g = g.flatten(0, 1).double()
        torch.testing.assert_close(moments.outputs[name].gram(), g.T @ g, rtol=1e-3, atol=1e-5)
        per_window = [torch.autograd.grad(losses[w].sum(), module.weight, retain_graph=True)[0] for w in range(5)]
        rows = sum(p.double().square().sum(1) for p in per_window)
        torch.testing.assert_close(moments.outputs[name].fisher_rows, rows, rtol=1e-3, atol=1e-5)
        assert moments.outputs[name].gradient_norm == pytest.approx(sum(per_window).norm().item(), rel=1e-4)
        assert (moments.outputs[name].tokens, moments.outputs[name].windows) == (5 * 64, 5)


@pytest.mark.parametrize("name", ["llama", "opt"])
def test_fisher_rows_are_sums_over_windows_also_where_the_block_flattens_them(name):
    model = ARCHITECTURES[name]()
    ids = torch.randint(3, VOCABULARY, (5, 7), generator=torch.Generator().manual_seed(1))
    decoder = Decoder(model)
    linears = decoder.linears()
    moments = collect(decoder, ids, linears)
    collect_gradients(decoder, ids, linears, moments)
    logits = model(input_ids=ids).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").sum(1)
    for linear, module in linears[1].items():
        weight = module.weight.requires_grad_()
        per_window = [torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in losses]
        rows = sum(p.double().square().sum(1) for p in per_window)
        torch.testing.assert_close(moments.outputs[linear].fisher_rows, rows, rtol=1e-3, atol=1e-7)
        assert moments.outputs[linear].gradient_norm == pytest.approx(sum(per_window).norm().item(), rel=1e-4)
        assert (moments.outputs[linear].tokens, moments.outputs[linear].windows) == (5 * 7, 5)


def test_sampled_labels_depend_on_the_seed_alone(decoder, ids):
    def gram(seed):
        moments = collect(decoder, ids[:2], decoder.linears())
        collect_gradients(decoder, ids[:2], decoder.linears(), moments, labels="sampled", seed=seed)
        return moments.outputs["model.layers.0.mlp.up_proj"].gram()

    assert torch.equal(gram(0), gram(0)) and not torch.equal(gram(0), gram(1))


def test_few_tokens_are_reported_by_linear(decoder, ids):
    moments = collect(decoder, ids[:1, :40], decoder.linears())
    assert moments.short_of_tokens() == [f"model.layers.{i}.mlp.down_proj" for i in (0, 1)]  # 48 channels, 40 tokens


def test_activations_that_are_not_finite_are_named(tiny_llama, ids):
    model = tiny_llama()
    model.model.layers[1].post_attention_layernorm.weight.data.fill_(float("inf"))
    decoder = Decoder(model)
    with pytest.raises(SlimrankError, match=r"input of model\.layers\.1\.mlp\.gate_proj"):
        collect(decoder, ids[:1], decoder.linears())
