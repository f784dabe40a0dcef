import math
from dataclasses import replace

import pytest
import torch
from sessions import session as session_of
from sessions import windows
from torch import nn

from slimrank.errors import SlimrankError
from slimrank.forms.base import Form
from slimrank.model.decoder import set_module
from slimrank.numerics.losses import divergence
from slimrank.recipe import load_recipe
from slimrank.refine.blocks import Blocks, variance
from slimrank.refine.distill import Distill, held_out_divergence, lr_for, states_error
from slimrank.refine.training import Best, Descent, teacher_of, trainable
from slimrank.run.pipeline import factorize, make_plan


@pytest.fixture
def compressed(tiny_llama):
    """A session whose model has been cut to half its linears, and the plan's ranks."""
    return cut(tiny_llama())


def cut(model):
    session = session_of(model)

    def more(count, seed):
        return windows(320, count, seed=seed).calibration

    session.windows = replace(session.windows, more=more)
    plan = make_plan(session, load_recipe("svd-llm"))
    factorize(session, plan)
    return session, {name: linear.rank for name, linear in plan.linears.items()}


def test_only_factors_and_vectors_are_trained(compressed):
    model = compressed[0].decoder.model
    found = {id(p) for p in trainable([model])}
    for name, module in model.named_modules():
        if isinstance(module, Form):
            assert all(id(p) in found for p in module.parameters()), name
    assert id(model.get_input_embeddings().weight) not in found
    assert id(model.model.norm.weight) in found


def test_the_teacher_is_the_dense_model_and_stays_so(compressed, tiny_llama):
    session, ids = compressed[0], compressed[0].windows.held_out
    set_module(session.decoder.model, next(iter(session.dense)), next(iter(session.dense.values())))
    session.decoder.model.model.norm.weight.data.mul_(0.5)  # an earlier refiner's doing
    teacher = teacher_of(session)
    for parameter in trainable([session.decoder.model]):
        parameter.data.add_(1)
    with torch.no_grad():
        torch.testing.assert_close(teacher(ids).logits, tiny_llama()(ids).logits)


@pytest.mark.parametrize("softened", [0.0, 0.5, 1.0])
def test_a_softened_teacher_is_on_the_way_to_the_temperature_of_the_compressed_models_head(
    compressed, tiny_llama, softened
):
    session, ids = compressed[0], compressed[0].windows.held_out
    session.decoder.model.model.norm.weight.data.mul_(0.5)
    session.decoder.model.model.layers[0].input_layernorm.weight.data.mul_(0.5)
    with torch.no_grad():
        expected = (1 - 0.5 * softened) * tiny_llama()(ids).logits
        torch.testing.assert_close(teacher_of(session, softened)(ids).logits, expected)


def test_distillation_brings_the_compressed_model_nearer(compressed):
    session, ranks = compressed
    teacher, ids = teacher_of(session), session.windows.held_out
    before = held_out_divergence(session.decoder.model, teacher, ids)
    window = session.windows.calibration.shape[1]
    (note,) = Distill(tokens=40 * 4 * window, batch=4 * window, lr=3e-3, vector_lr=3e-3).refine(session, ranks)
    after = held_out_divergence(session.decoder.model, teacher, ids)
    assert after < 0.9 * before and f"{before:.4f} to {after:.4f}" in note
    assert f"read {40 * 4 * window:,} tokens" in note
    assert all(p.grad is None for p in session.decoder.model.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "refiner", [Distill(tokens=40 * 4 * 32, batch=4 * 32, lr=3e-3, vector_lr=3e-3), Blocks(passes=10, lr=3e-3)]
)
def test_in_half_precision_it_comes_as_near_as_in_float32(compressed, tiny_llama, refiner, dtype):
    half, ranks = cut(tiny_llama().to(dtype))
    refiner.refine(*compressed), refiner.refine(half, ranks)
    ids, dense = half.windows.held_out, tiny_llama()
    found = held_out_divergence(half.decoder.model, dense, ids)
    assert all(p.dtype == dtype for p in half.decoder.model.parameters())
    assert found == pytest.approx(held_out_divergence(compressed[0].decoder.model, dense, ids), rel=0.1)


def test_steps_that_rounding_would_swallow_add_up():
    p = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    descent = Descent([p], lr=1e-4, steps=100, what="distill")
    for _ in range(100):
        descent.step([(p - 2).square().sum()])
    assert p.item() == pytest.approx(1 + 1e-4 * 50, abs=2**-8) and p.item() > 1


def test_a_batch_in_parts_is_the_whole_batch(tiny_llama, monkeypatch):
    def trained(numbers):
        monkeypatch.setattr("slimrank.refine.distill.CPU_LOGITS", numbers)
        session, ranks = cut(tiny_llama())
        Distill(tokens=2 * 4 * 32, batch=4 * 32, lr=1e-3).refine(session, ranks)
        return session.decoder.model.state_dict()

    whole, parts = trained(2**40), trained(1)
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-4)


def test_vectors_have_a_rate_of_their_own():
    matrix, vector = nn.Parameter(torch.eye(3)), nn.Parameter(torch.ones(3))
    Descent([matrix, vector], lr=1e-9, vector_lr=1e-2, steps=1, what="distill").step([(matrix @ vector).sum()])
    assert (matrix - torch.eye(3)).abs().max() < 1e-7 and vector.tolist() == pytest.approx([0.99] * 3)


def test_states_error_is_the_mean_over_tokens_and_the_blocks_but_the_last():
    dense = [torch.randn(2, 3, 4) for _ in range(4)]  # before 3 blocks, and behind the last one's norm
    ours = [2 * dense[0], 1.5 * dense[1], dense[2] + dense[2].roll(1, 0), 9 * dense[3]]
    rolled = dense[2].roll(1, 0).square().sum(-1) / dense[2].square().sum(-1)
    torch.testing.assert_close(states_error(ours, dense), (0.25 + rolled.mean()) / 2)
    assert states_error(ours[:2], dense[:2]) == 0


@pytest.mark.parametrize(("states", "fading"), [(3.0, 0.5), (0.0, 0.5)])
def test_the_loss_is_the_divergence_and_the_states_share_of_their_error(compressed, states, fading):
    model, ids = compressed[0].decoder.model, compressed[0].windows.held_out
    teacher = teacher_of(compressed[0])
    with torch.no_grad():
        a, b = (one(ids, output_hidden_states=True) for one in (model, teacher))
        expected = divergence(a.logits, b.logits)
        between = zip(a.hidden_states[1:-1], b.hidden_states[1:-1], strict=True)
        expected += states * fading * sum(((x - y).norm(dim=-1) / y.norm(dim=-1)).square().mean() for x, y in between)
        torch.testing.assert_close(Distill(states=states)._loss(model, teacher, ids, fading), expected)


def test_the_less_was_lost_the_smaller_the_steps(compressed):
    session, width = compressed[0], compressed[0].decoder.width
    assert lr_for(1.0, session) == pytest.approx(0.01 / width**0.5)
    assert lr_for(0.01, session) == pytest.approx(0.001 / width**0.5)


def test_block_refinement_brings_every_block_nearer(compressed):
    session, ranks = compressed
    teacher, ids = teacher_of(session), session.windows.held_out
    before = held_out_divergence(session.decoder.model, teacher, ids)
    (note,) = Blocks(passes=10, lr=3e-3).refine(session, ranks)
    assert held_out_divergence(session.decoder.model, teacher, ids) < before
    assert "held-out errors" in note


def test_blocks_that_are_still_dense_are_left_as_they_are(tiny_llama):
    session = session_of(tiny_llama())
    before = {name: p.detach().clone() for name, p in session.decoder.model.named_parameters()}
    (note,) = Blocks(passes=1).refine(session, {})
    assert "to 100.0% of what they were" in note
    assert all(p.equal(before[name]) for name, p in session.decoder.model.named_parameters())


def test_variance_is_that_of_all_batches_at_once():
    batches = [torch.randn(2, 3, 5) * torch.arange(1.0, 6) + 7, torch.randn(1, 3, 5)]
    torch.testing.assert_close(variance(batches), torch.cat(batches).flatten(0, 1).var(0))


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
        Descent([p], lr=1.0, steps=2, what="distill").step([p * math.nan])


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_step():
    p = nn.Parameter(torch.zeros(1))
    with pytest.raises(SlimrankError, match=r"A gradient of refine\.distill became NaN or Inf"):
        Descent([p], lr=1.0, steps=2, what="distill").step([p.sqrt().sum()])
    assert p.item() == 0
