import pytest
import torch
from sessions import session

from slimrank.estimate import estimate
from slimrank.refine.anchored import Anchored
from slimrank.refine.newton import Newton
from slimrank.refine.temperature import Temperature


def seconds(made, refine):
    return estimate(made.decoder, made.linears, made.windows.calibration, gradients=True, refine=refine).seconds


def test_what_the_refiners_solve_is_in_the_time(tiny_llama, monkeypatch):
    monkeypatch.setattr("slimrank.estimate.speed", lambda device, dtype: 1.0 if dtype == torch.float64 else 1e30)
    made = session(tiny_llama())
    once = 0
    for block in made.linears:
        for linear in block.values():
            m, n = linear.weight.shape
            once += 9 * min(m, n) ** 3 + 4 * max(m, n) * m * n
    assert seconds(made, []) == pytest.approx(2 * once)
    assert seconds(made, [Temperature()]) == pytest.approx(2 * once)
    assert seconds(made, [Anchored(), Newton(steps=4)]) == pytest.approx((2 + 2.8) * 2 * once)
    assert seconds(made, [Anchored(mix=(0.5, 1.0))]) == pytest.approx(3 * 2 * once)
