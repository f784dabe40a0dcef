import math
from dataclasses import replace

import pytest
import torch
from tiny_spectra import spectra, windows
from torch import nn

from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.model.modules import set_module
from slimrank.numerics.losses import divergence
from slimrank.recipe import load_recipe
from slimrank.refine.distill import Distill, held_out_divergence, lr_for, states_error
from slimrank.refine.training import Best, Descent, Group, teacher_of, trainable
from slimrank.run.build import cuts_of
from slimrank.run.steps import allocate, factorize
from slimrank.store.run import Run


@pytest.fixture
def compressed(tiny_llama):
    """Spectra of a model that has been cut to half its linears, and the cuts."""
    return cut(tiny_llama())


def cut(model):
    def more(count, seed):
        return windows(320, count, seed=seed).calibration

    made = spectra(model)
    read = replace(made.evidence.windows, more=more)
    made = replace(made, evidence=replace(made.evidence, windows=read))
    plan = allocate(made, load_recipe("svd-llm"), 0.6)
    factorize(made, plan)
    return made, cuts_of(plan, made)


def test_only_factors_and_vectors_are_trained(compressed):
    model = compressed[0].model.decoder.model
    found = {id(p) for p in trainable(model)}
    for name, module in model.named_modules():
        if isinstance(module, Form):
            assert all(id(p) in found for p in module.parameters()), name
    assert id(model.get_input_embeddings().weight) not in found
    assert id(model.model.norm.weight) in found


def test_the_teacher_is_the_dense_model_and_stays_so(compressed, tiny_llama):
    made, ids = compressed[0].model, compressed[0].evidence.windows.held_out
    model = made.decoder.model
    set_module(model, *next(iter(made.linears.items())))
    model.model.norm.weight.data.mul_(0.5)  # an earlier refiner's doing
    teacher = teacher_of(made)
    for parameter in trainable(model):
        parameter.data.add_(1)
    with torch.no_grad():
        torch.testing.assert_close(teacher(ids).logits, tiny_llama()(ids).logits)


@pytest.mark.parametrize("softened", [0.0, 0.5, 1.0])
def test_a_softened_teacher_is_on_the_way_to_the_temperature_of_the_compressed_models_head(
    compressed, tiny_llama, softened
):
    made, ids = compressed[0].model, compressed[0].evidence.windows.held_out
    model = made.decoder.model.model
    model.norm.weight.data.mul_(0.5)
    model.layers[0].input_layernorm.weight.data.mul_(0.5)
    with torch.no_grad():
        expected = (1 - 0.5 * softened) * tiny_llama()(ids).logits
        torch.testing.assert_close(teacher_of(made, softened)(ids).logits, expected)


def test_distillation_brings_the_compressed_model_nearer(compressed):
    made, cuts = compressed
    model, teacher, ids = made.model.decoder.model, teacher_of(made.model), made.evidence.windows.held_out
    before = held_out_divergence(model, teacher, ids)
    window = ids.shape[1]
    refiner = Distill(tokens=40 * 4 * window, batch=4 * window, lr=3e-3, vector_lr=3e-3)
    (note,) = refiner.refine(made, cuts, Run())
    after = held_out_divergence(model, teacher, ids)
    assert after < 0.9 * before and f"{before:.4f} -> {after:.4f}" in note
    assert f"on {40 * 4 * window:,} tokens" in note
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("refiner", [Distill(tokens=40 * 4 * 32, batch=4 * 32, lr=3e-3, vector_lr=3e-3)])
def test_in_half_precision_it_comes_as_near_as_in_float32(compressed, tiny_llama, refiner, dtype):
    half = cut(tiny_llama().to(dtype))
    for each in (compressed, half):
        refiner.refine(*each, Run())
    model, whole = (each[0].model.decoder.model for each in (half, compressed))
    ids, dense = half[0].evidence.windows.held_out, tiny_llama()
    assert all(p.dtype == dtype for p in model.parameters())
    assert held_out_divergence(model, dense, ids) == pytest.approx(held_out_divergence(whole, dense, ids), rel=0.1)


def test_steps_that_rounding_would_swallow_add_up():
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    descent = Descent([Group([p], 1e-4)], steps=100, what="distill")
    for _ in range(100):
        descent.step([(p - 2).square().sum()])
    assert p.item() == pytest.approx(1 + 1e-4 * 50, abs=2**-8) and p.item() > 1


def test_a_batch_in_parts_is_the_whole_batch(tiny_llama, monkeypatch):
    def trained(numbers):
        monkeypatch.setattr("slimrank.refine.distill.CPU_LOGITS", numbers)
        made, cuts = cut(tiny_llama())
        Distill(tokens=2 * 4 * 32, batch=4 * 32, lr=1e-3).refine(made, cuts, Run())
        return made.model.decoder.model.state_dict()

    whole, parts = trained(2**40), trained(1)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-4)


def test_vectors_have_a_rate_of_their_own():
    matrix, vector = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))
    groups = [Group([matrix], 1e-9, orthogonal=True), Group([vector], 1e-2)]
    Descent(groups, steps=1, what="distill").step([(matrix @ vector).sum()])
    assert (matrix - torch.eye(3)).abs().max() < 1e-7 and vector.tolist() == pytest.approx([0.99] * 3)


def test_states_error_is_the_mean_over_tokens_and_the_blocks_but_the_last():
    dense = [torch.randn(2, 3, 4) for _ in range(4)]  # before 3 blocks, and behind the last one's norm
    ours = [2 * dense[0], 1.5 * dense[1], dense[2] + dense[2].roll(1, 0), 9 * dense[3]]
    rolled = dense[2].roll(1, 0).square().sum(-1) / dense[2].square().sum(-1)
    torch.testing.assert_close(states_error(ours, dense), (0.25 + rolled.mean()) / 2)
    assert states_error(ours[:2], dense[:2]) == 0


@pytest.mark.parametrize(("states", "fading"), [(3.0, 0.5), (0.0, 0.5)])
def test_the_loss_is_the_divergence_and_the_states_share_of_their_error(compressed, states, fading):
    made, ids = compressed[0].model, compressed[0].evidence.windows.held_out
    model, teacher = made.decoder.model, teacher_of(made)
    with torch.no_grad():
        a, b = (one(ids, output_hidden_states=True) for one in (model, teacher))
        expected = divergence(a.logits, b.logits)
        between = zip(a.hidden_states[1:-1], b.hidden_states[1:-1], strict=True)
        expected += states * fading * sum(((x - y).norm(dim=-1) / y.norm(dim=-1)).square().mean() for x, y in between)
        torch.testing.assert_close(Distill(states=states)._loss(model, teacher, ids, fading), expected)


def test_the_less_was_lost_the_smaller_the_steps():
    assert lr_for(1.0, 32) == pytest.approx(0.01 / 32**0.5)
    assert lr_for(0.01, 32) == pytest.approx(0.001 / 32**0.5)


def test_the_best_state_comes_back():
    p = nn.Parameter(torch.zeros(2))
    best = Best([p], 1.0)
    p.data.fill_(5)
    best.offer(0.5, 3)
    p.data.fill_(9)
    best.offer(0.7, 4)
    best.restore()
    assert p.tolist() == [5, 5] and (best.loss, best.step) == (0.5, 3)


def test_a_loss_that_is_not_finite_stops_the_run():
    p = nn.Parameter(torch.ones(1))
    with pytest.raises(SlimrankError, match=r"The loss of refine\.distill became NaN or Inf"):
        Descent([Group([p], 1.0)], steps=2, what="distill").step([p * math.nan])


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step():
    p = nn.Parameter(torch.zeros(1))
    with pytest.raises(SlimrankError, match=r"A gradient of refine\.distill became NaN or Inf"):
        Descent([Group([p], 1.0)], steps=2, what="distill").step([p.sqrt().sum()])
    assert p.item() == 0
