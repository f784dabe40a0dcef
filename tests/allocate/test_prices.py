import numpy as np
import pytest
import torch

from slimrank.allocate import Problem
from slimrank.allocate.nats import Nats
from slimrank.allocate.prices import agreement, corrected_losses, measure
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.metric.two_sided import TwoSided
from slimrank.model.decoder import set_module
from slimrank.run.pipeline import decompose_all
from slimrank.spectrum.decomposition import decompose
from tests.refine.test_anchored import start

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
    readings = {("a",): a, ("b", "c"): b}
    assert "of 4 cuts in 2 linears and groups of them: Spearman rank correlation 0.800." in agreement(readings)


def test_readings_are_the_divergence_of_single_cuts(tiny_llama):
    session = start(tiny_llama(), TwoSided())
    decompose_all(session)
    problem = Problem(0.6, session.spectrum(), PivotedFactorizer(), session)
    losses = {(name,): s.losses().numpy() for name, s in problem.spectrum.linears.items()}
    readings = measure(problem, losses, dict.fromkeys(session.dense, 9), points=3, windows=8)
    name = list(session.dense)[3]
    assert readings[name,][0] == pytest.approx(losses[name,][[3, 6, 9]])
    model, ids = session.decoder.model, session.windows.calibration[:8]
    site = session.site(name)
    left, right = decompose(site.weight, session.metric.grams(site)).cut(6)
    cut = torch.nn.Linear(*site.weight.T.shape, bias=False)
    with torch.no_grad():
        cut.weight.copy_(left @ right)
        dense = model(ids).logits.log_softmax(-1)
        set_module(model, name, cut)
        changed = model(ids).logits.log_softmax(-1)
    expected = (dense.exp() * (dense - changed)).sum(-1).mean().item()
    assert readings[name,][1][1] == pytest.approx(expected, rel=1e-3)
    set_module(model, name, session.dense[name])
    allocation = Nats(calibrate=2, windows=8).allocate(problem)
    assert "Spearman" in allocation.notes[0]
