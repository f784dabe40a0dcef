import pytest
import torch
from tiny_spectra import windows

from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import load_recipe
from slimrank.run.estimate import estimate

IDS = windows(320).calibration


def expected(model, refine="", **settings):
    given = [f"{key}={value}" for key, value in settings.items()]
    recipe = load_recipe("slimrank", ["form=pivoted", f"refine=[{refine}]", *given])
    return estimate(Compressible(Decoder(model)), IDS, recipe)


def test_what_the_refiners_solve_is_in_the_time(tiny_llama, monkeypatch):
    monkeypatch.setattr("slimrank.run.estimate.speed", lambda device, dtype: 1.0 if dtype == torch.float64 else 1e30)
    model, once = tiny_llama(), 0
    for block in Decoder(model).linears():
        for linear in block.values():
            m, n = linear.weight.shape
            once += 9 * min(m, n) ** 3 + 4 * max(m, n) * m * n
    assert expected(model).seconds == pytest.approx(2 * once)
    assert expected(model, "temperature").seconds == pytest.approx(2 * once)
    assert expected(model, "anchored, temperature").seconds == pytest.approx(2 * 2 * once)


def test_who_runs_the_whole_model_needs_it_in_memory_and_who_trains_it_four_times(tiny_llama, monkeypatch):
    monkeypatch.setattr("slimrank.run.estimate.LIBRARIES", 0)
    monkeypatch.setattr("slimrank.run.estimate.LOGITS", 0)
    monkeypatch.setattr("slimrank.run.estimate.default_batch", lambda decoder, window: 1)
    model = tiny_llama(num_hidden_layers=40)
    size = sum(parameter.nbytes for parameter in model.parameters())
    assert expected(model, "anchored, temperature").memory < size
    whole = expected(model, allocate="{name: nats, calibrate: 1}")
    assert whole.memory == size and whole.largest == "the allocator or the refiners that run the whole model"
    assert expected(model, "anchored, distill").memory == 4 * size
    model.to(torch.bfloat16)
    assert expected(model, "anchored, distill").memory == size / 2 + 3 * size  # what training adds is in float32


def test_the_bases_that_factors_are_cut_from_are_on_the_disk_beside_the_finished_blocks(tiny_llama):
    without, held = (expected(tiny_llama(), route=route) for route in ("eigen", "projector"))
    attention, mlp = 2 * 32**2 + 2 * 16**2, 3 * 32**2  # the squares of the smaller sides, k and v having 16 rows
    assert held.disk - without.disk == 2 * 8 * (attention + mlp)
    assert held.memory == without.memory
