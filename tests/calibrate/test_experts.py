"""Moments of experts against sums over the tokens that are routed to them."""

import pytest
import torch
from architectures import VOCABULARY, build, mixtures

from slimrank.calibrate.collect import each_block
from slimrank.calibrate.experts import PRIOR, windows_of
from slimrank.calibrate.gradients import each_gradient
from slimrank.errors import SlimrankError
from slimrank.forms.experts import unfold, unfolded
from slimrank.model.decoder import Decoder

NAME = "model.layers.0.mlp.experts"


@pytest.fixture
def decoder():
    model = build(mixtures()["Qwen3Moe"])
    unfold(model)
    if not unfolded(model):
        pytest.skip("transformers 4 has lists of linears")
    return Decoder(model)


@pytest.fixture
def ids():
    return torch.randint(3, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))


def heard(decoder, ids):
    """The hidden states (tokens, width) at the experts of the first block, and the experts of each token."""
    heard = []
    module = decoder.model.get_submodule(NAME)
    with module.register_forward_pre_hook(lambda m, args: heard.append(args)), torch.no_grad():
        decoder.model(input_ids=ids)
    return heard[0][0].double(), heard[0][1]


def test_an_experts_gram_is_its_tokens_and_some_of_all(decoder, ids):
    _, moments = next(each_block(decoder, ids, decoder.linears(), pooled=True))
    x, index = heard(decoder, ids)
    k, every = PRIOR * 32, torch.cat([x, x])  # each token reaches two experts
    for expert in range(4):
        own = x[(index == expert).any(1)]
        found = moments.input_of(f"{NAME}.{expert}.gate_up_proj")
        shrunk = (own.T @ own + k * every.T @ every / len(every)) / (len(own) + k)
        assert (found.tokens, found.routed) == (48, len(own))
        torch.testing.assert_close(found.mean(), shrunk * (len(own) + 1) / 48, rtol=1e-5, atol=1e-7)


def test_all_experts_sees_every_token_and_weighs_by_routing(decoder, ids):
    _, moments = next(each_block(decoder, ids, decoder.linears(), pooled=True, every=True))
    x, index = heard(decoder, ids)
    for expert in range(4):
        found = moments.input_of(f"{NAME}.{expert}.gate_up_proj")
        count = int((index == expert).sum())
        assert found.routed == count
        torch.testing.assert_close(found.mean(), x.T @ x / 48 * (count + 1) / 48, rtol=1e-5, atol=1e-7)


def test_an_expert_without_a_token_has_the_moments_of_the_others(decoder, ids):
    gate = decoder.model.model.layers[0].mlp.gate
    with torch.no_grad():  # the first two experts get all tokens
        gate.weight.zero_()
    _, moments = next(each_block(decoder, ids, decoder.linears(), pooled=True))
    outputs = list(each_gradient(decoder, ids, decoder.linears()))[-1][1].outputs
    x, index = heard(decoder, ids)
    unseen = [expert for expert in range(4) if not (index == expert).any()]
    names = [f"{NAME}.{expert}.{role}" for expert in range(4) for role in ("gate_up_proj", "down_proj")]
    assert moments.unrouted(names) == [name for name in names if int(name.split(".")[-2]) in unseen]
    assert len(unseen) == 2
    for expert in unseen:
        found = moments.input_of(f"{NAME}.{expert}.gate_up_proj")
        torch.testing.assert_close(found.mean(), x.T @ x / 48 / 48, rtol=1e-5, atol=1e-8)
    seen = [outputs[f"{NAME}.{expert}.down_proj"] for expert in range(4) if expert not in unseen]
    whole = outputs[f"{NAME}.{unseen[0]}.down_proj"].mean()
    k = round(PRIOR * 32)  # tokens of the layer's mean that were added to each
    weight = [one.tokens - k for one in seen]
    raw = sum((one.gram() - k * whole for one in seen), torch.zeros(32, 32).double()) / sum(weight)
    torch.testing.assert_close(raw, whole, rtol=1e-6, atol=1e-12)


def test_gradients_are_those_at_the_experts_outputs_weighted_by_the_router(decoder, ids):
    outputs = list(each_gradient(decoder, ids, decoder.linears(), of_weights=True))[-1][1].outputs
    model, rows = decoder.model, {}
    module = model.get_submodule(NAME)
    linears = {name: linear for name, linear in decoder.linears()[0].items() if "experts" in name}
    module.watch = lambda m, hidden, own: rows.update(own) or own
    model.requires_grad_(True)
    weights = {name: torch.zeros(2, *linear.weight.shape) for name, linear in linears.items()}
    for window in range(2):
        shifted = model(input_ids=ids[window : window + 1]).logits[0, :-1]
        model.zero_grad()
        torch.nn.functional.cross_entropy(shifted, ids[window, 1:], reduction="sum").backward()
        for name, linear in linears.items():
            if linear.weight.grad is not None:
                weights[name][window] = linear.weight.grad
    module.watch = None
    for name in [f"{NAME}.{expert}.down_proj" for expert in range(4)]:
        own = weights[name].double().square().sum(-1).sum(0)
        every = sum(weights[f"{NAME}.{e}.down_proj"].double().square().sum(-1).sum(0) for e in range(4))
        torch.testing.assert_close(outputs[name].fisher_rows, own + PRIOR * 32 / 96 * every, rtol=1e-4, atol=1e-8)
        assert outputs[name].gradient_norm == pytest.approx(weights[name].sum(0).norm().item(), rel=1e-4)


def test_tokens_are_counted_by_window():
    assert windows_of(torch.tensor([0, 3, 7, 8, 11]), torch.Size([3, 4])) == [2, 1, 2]


def test_a_router_that_gives_nan_is_named(decoder, ids):
    with torch.no_grad():
        decoder.model.model.layers[0].mlp.gate.weight[1] = float("nan")
    with pytest.raises(SlimrankError, match=r"NaN or Inf in the (in|out)put of model\.layers\.0"):
        list(each_block(decoder, ids, decoder.linears(), pooled=True))
