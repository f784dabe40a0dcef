import pytest
import torch
from sessions import session

from slimrank.refine.anchored import Anchored
from slimrank.refine.distill import Distill
from slimrank.refine.temperature import Temperature
from slimrank.run.estimate import estimate


def seconds(made, refine):
    return estimate(made.decoder, made.linears, made.windows.calibration, gradients=True, refine=refine).seconds


def test_what_the_refiners_solve_is_in_the_time(tiny_llama, monkeypatch):
    monkeypatch.setattr("slimrank.run.estimate.speed", lambda device, dtype: 1.0 if dtype == torch.float64 else 1e30)
    made = session(tiny_llama())
    once = 0
    for block in made.linears:
        for linear in block.values():
            m, n = linear.weight.shape
            once += 9 * min(m, n) ** 3 + 4 * max(m, n) * m * n
    assert seconds(made, []) == pytest.approx(2 * once)
    assert seconds(made, [Temperature()]) == pytest.approx(2 * once)
    assert seconds(made, [Anchored(), Temperature()]) == pytest.approx(2 * 2 * once)


def memory(made, refine, whole=False):
    return estimate(made.decoder, made.linears, made.windows.calibration, gradients=True, refine=refine, whole=whole)


def test_who_runs_the_whole_model_needs_it_in_memory_and_who_trains_it_four_times(tiny_llama, monkeypatch):
    monkeypatch.setattr("slimrank.run.estimate.LIBRARIES", 0)
    monkeypatch.setattr("slimrank.run.estimate.LOGITS", 0)
    monkeypatch.setattr("slimrank.run.estimate.default_batch", lambda decoder, window: 1)
    made = session(tiny_llama(num_hidden_layers=40))
    size = sum(parameter.nbytes for parameter in made.decoder.model.parameters())
    assert memory(made, [Anchored(), Temperature()]).memory < size
    whole = memory(made, [], whole=True)
    assert whole.memory == size and whole.largest == "the allocator or the refiners that run the whole model"
    assert memory(made, [Anchored(), Distill()]).memory == 4 * size
    made.decoder.model.to(torch.bfloat16)
    assert memory(made, [Anchored(), Distill()]).memory == size / 2 + 3 * size  # what training adds is in float32


def test_the_bases_that_factors_are_cut_from_are_on_the_disk_beside_the_finished_blocks(tiny_llama):
    made = session(tiny_llama())
    run = {"gradients": False, "refine": []}
    without, held = (estimate(made.decoder, made.linears, made.windows.calibration, bases=b, **run) for b in (0, 1))
    attention, mlp = 2 * 32**2 + 2 * 16**2, 3 * 32**2  # the squares of the smaller sides, k and v having 16 rows
    assert held.disk - without.disk == 2 * 8 * (attention + mlp)
    assert held.memory == without.memory
