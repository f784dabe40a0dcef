import math

import pytest
import torch
from tiny_spectra import spectra

from slimrank.recipe import load_recipe
from slimrank.refine.ends import end_grid, round_ends
from slimrank.run.held_out import held_out_cost
from slimrank.run.steps import allocate, factorize


@pytest.mark.parametrize("numbers", [1, 2**22])
def test_the_cost_is_that_of_both_models_run_whole(tiny_llama, monkeypatch, numbers):
    monkeypatch.setattr("slimrank.calibrate.stream.CPU_LOGITS", numbers)  # logits of one token at a time, or of all
    made, dense = spectra(tiny_llama()), tiny_llama()
    ids, model = made.evidence.windows.held_out, made.model.decoder.model
    factorize(made, allocate(made, load_recipe("svd-llm"), 0.4))
    with torch.no_grad():
        log_p, log_q = (one(ids).logits.double().log_softmax(-1) for one in (dense, model))
    found = held_out_cost(made.model, ids)
    assert found.tokens == ids.numel()
    for log, value in ((log_p, found.dense), (log_q, found.compressed)):
        nats = -log[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()
        assert value == pytest.approx(math.exp(nats), rel=1e-5)
    assert found.divergence == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-4)
    assert found.compressed != found.dense and "held-out tokens" in found.sentence()


@pytest.mark.parametrize("tied", [True, False])
def test_rounded_embedding_and_head_are_no_part_of_the_dense_model(tiny_llama, tied):
    made, dense = spectra(tiny_llama(tie_word_embeddings=tied)), tiny_llama(tie_word_embeddings=tied)
    ids, model = made.evidence.windows.held_out, made.model.decoder.model
    round_ends(made.model.decoder.model, dict.fromkeys(made.model.ends, end_grid(2)))
    with torch.no_grad():
        log_p, log_q = (one(ids).logits.double().log_softmax(-1) for one in (dense, model))
    found = held_out_cost(made.model, ids)
    nats = -log_p[:, :-1].gather(-1, ids[:, 1:, None]).mean().item()
    assert found.dense == pytest.approx(math.exp(nats), rel=1e-5)
    assert found.divergence == pytest.approx((log_p.exp() * (log_p - log_q)).sum(-1).mean().item(), rel=1e-4)


def test_without_held_out_windows_there_is_none(tiny_llama):
    made = spectra(tiny_llama())
    assert held_out_cost(made.model, made.evidence.windows.held_out[:0]) is None


def test_a_model_that_was_not_changed_costs_nothing(tiny_llama):
    made = spectra(tiny_llama())
    found = held_out_cost(made.model, made.evidence.windows.held_out)
    assert found.divergence == pytest.approx(0, abs=1e-7) and found.compressed == pytest.approx(found.dense)
