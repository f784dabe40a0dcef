import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.allocate import Problem, Uniform
from slimrank.allocate.budget import used
from slimrank.allocate.v2 import TypeGroups, inverse_logs
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.model.units import Unit
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra

ROLES = {"q": (64, 64), "up": (160, 64)}


def task(scales, keep):
    """Blocks of two roles, the spectra of block b scaled by scales[b]."""
    curves = {}
    for block, scale in enumerate(scales):
        for role, shape in ROLES.items():
            values = scale * torch.logspace(2, 0, min(shape), dtype=torch.float64)
            curves[Unit((f"{block}.{role}",), block, role, (shape,))] = Curve(values)
    return Problem(keep, LowRankFactorizer(), Spectra(None, None, None, curves=curves))


def removed_by_hand(problem, role):
    group = {unit: curve for unit, curve in problem.curves.items() if unit.role == role}
    losses = {}
    for unit, curve in group.items():
        m, n = unit.shape
        losses[unit] = curve.values[int(problem.keep * m * n / (m + n)) :].square().sum().sqrt().item()
    weights = {unit: 1 / math.log(loss) for unit, loss in losses.items()}
    total = sum(weights.values())
    return {unit: len(group) * (1 - problem.keep) * g / total for unit, g in weights.items()}


def test_the_shares_are_the_papers_and_a_groups_mean_is_the_target():
    problem = task([1.0, 10.0, 1000.0], 0.7)
    ranks = TypeGroups().allocate(problem).ranks
    for role, (m, n) in ROLES.items():
        removed = removed_by_hand(problem, role)
        assert sum(removed.values()) / 3 == pytest.approx(0.3)
        for unit, share in removed.items():
            assert ranks[unit] == int((1 - share) * m * n / (m + n) + 1e-9)


def test_equal_losses_are_uniform():
    problem = task([5.0] * 4, 0.6)
    assert TypeGroups().allocate(problem).ranks == Uniform().allocate(problem).ranks


def test_losses_near_the_pole_are_rescaled_to_e_and_noted():
    weights, factor = inverse_logs(torch.tensor([0.5, 5.0, 500.0]).double())
    assert factor == pytest.approx(math.e / 0.5)
    assert weights.tolist() == pytest.approx([1.0, 1 / (1 + math.log(10)), 1 / (1 + math.log(1000))])
    notes = TypeGroups().allocate(task([1e-4, 1.0], 0.6)).notes
    assert len(notes) == 1 and "q (x " in notes[0] and "up (x " in notes[0]


def test_losses_above_e_are_left_alone():
    weights, factor = inverse_logs(torch.tensor([3.0, 30.0]).double())
    assert factor == 1 and weights.tolist() == pytest.approx([1 / math.log(3), 1 / math.log(30)])
    assert TypeGroups().allocate(task([10.0, 20.0], 0.6)).notes == ()


def test_no_loss_anywhere_is_uniform():
    assert inverse_logs(torch.zeros(3).double())[0].tolist() == [1, 1, 1]


@given(st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=6), st.floats(0.06, 1))
@settings(max_examples=40, deadline=None)
def test_never_overshoots(scales, keep):
    problem = task(scales, keep)
    assert used(problem, TypeGroups().allocate(problem).ranks) <= problem.budget
