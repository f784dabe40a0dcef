import numpy as np
import pytest
import torch
from tiny_spectra import problem, spectra

from slimrank.allocate.nats import Nats
from slimrank.allocate.prices import agreement, corrected_losses, measure
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.metric.two_sided import TwoSided
from slimrank.model.units import Unit
from slimrank.spectrum.decomposition import decompose_weight

LOSSES = np.array([8.0, 4, 2, 1, 0])


def test_scale_and_exponent_come_back_from_exact_readings():
    measured = 1.5 * LOSSES[[1, 2]] ** 1.2
    expected = np.clip(1.5 * LOSSES**1.2, LOSSES / 4, LOSSES * 4)
    assert corrected_losses(LOSSES, LOSSES[[1, 2]], measured) == pytest.approx(expected)


def test_corrections_are_bounded_monotone_and_need_sound_readings():
    wild = corrected_losses(LOSSES, LOSSES[[0, 3]], np.array([1e6, 1e-6]))
    assert (wild <= 4 * LOSSES).all() and (wild >= LOSSES / 4).all() and (np.diff(wild) <= 0).all()
    assert corrected_losses(LOSSES, LOSSES[[2]], np.array([6.0])) == pytest.approx(3 * LOSSES)
    assert corrected_losses(LOSSES, LOSSES[[4]], np.array([1.0])) is LOSSES
    tiny = 1e-300 * LOSSES
    assert corrected_losses(tiny, tiny[[0, 1]], np.array([1e300, 1e280])) == pytest.approx(4 * tiny, abs=0)


def test_the_note_states_the_rank_correlation():
    a, b = (np.array([1.0, 2.0]), np.array([2.0, 3.0])), (np.array([3.0, 4.0]), np.array([5.0, 4.0]))
    readings = {Unit(("a",), 0, "a", ((4, 4),)): a, Unit(("b", "c"), 0, "b+c", ((4, 4), (4, 4))): b}
    assert "of 4 truncations of 2 units with a Spearman correlation of 0.800." in agreement(readings)


def test_readings_are_the_divergence_of_single_cuts(tiny_llama):
    made = spectra(tiny_llama(), TwoSided())
    asked = problem(made, form=PivotedFactorizer())
    losses = {unit: curve.losses().numpy() for unit, curve in made.curves.items()}
    readings = measure(asked, losses, dict.fromkeys(made.curves, 9), points=3, windows=8)
    unit = list(made.curves)[3]
    assert readings[unit][0] == pytest.approx(losses[unit][[3, 6, 9]])
    model, ids = made.model.decoder.model, made.evidence.windows.calibration[:8]
    weight = made.weight(unit)
    left, right = decompose_weight(weight, made.grams(unit)).cut(6)
    cut = torch.nn.Linear(*weight.T.shape, bias=False)
    with torch.no_grad():
        cut.weight.copy_(left @ right)
        dense = model(ids).logits.log_softmax(-1)
        with made.model.replaced({unit.leader: cut}):
            changed = model(ids).logits.log_softmax(-1)
    expected = (dense.exp() * (dense - changed)).sum(-1).mean().item()
    assert readings[unit][1][1] == pytest.approx(expected, rel=1e-3)
    assert "Spearman" in Nats(calibrate=2, windows=8).allocate(asked).notes[0]
