import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.allocate import Problem
from slimrank.allocate.nats import Nats
from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.model.units import Unit
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra

SHAPES = [(16, 16), (24, 16), (16, 40), (8, 16)]


def problem(keep, form, seed=0):
    generator = torch.Generator().manual_seed(seed)
    curves = {}
    for index, shape in enumerate(SHAPES):
        values = torch.rand(min(shape), generator=generator, dtype=torch.float64).sort(descending=True).values
        curves[Unit((f"l{index}",), 0, f"l{index}", (shape,))] = Curve(values * 10**index)
    return Problem(keep, form, Spectra(None, None, None, curves=curves))


def stored(problem, ranks):
    ranks = zip(SHAPES, ranks.values(), strict=True)
    return sum(m * n if rank is None else problem.form.cost([(m, n)], rank) for (m, n), rank in ranks)


@given(st.floats(0.25, 1.0), st.sampled_from([LowRankFactorizer, PivotedFactorizer]), st.sampled_from([1, 4]))
@settings(max_examples=40, deadline=None)
def test_within_the_budget_and_within_one_rank_of_it(keep, form, multiple):
    p = problem(keep, form(multiple=multiple))
    try:
        ranks = Nats().allocate(p).ranks
    except UsageError:
        assert sum(min(p.form.cost([s], multiple), s[0] * s[1]) for s in SHAPES) > p.budget
        return
    used = stored(p, ranks)
    assert used <= p.budget
    assert all(rank is None or rank % multiple == 0 for rank in ranks.values())
    raised = [
        p.form.cost([SHAPES[i]], rank + multiple) - p.form.cost([SHAPES[i]], rank)
        for i, rank in enumerate(ranks.values())
        if rank is not None and p.form.cost([SHAPES[i]], rank + multiple) < SHAPES[i][0] * SHAPES[i][1]
    ]
    assert all(p.budget - used < more for more in raised)


def test_costly_losses_are_bought_first_and_everything_is_dense_at_keep_1():
    ranks = list(Nats().allocate(problem(0.7, PivotedFactorizer())).ranks.values())
    assert ranks[0] == 1
    assert ranks[3] is None
    assert set(Nats().allocate(problem(1.0, PivotedFactorizer())).ranks.values()) == {None}


def test_a_budget_below_the_least_ranks_is_refused_by_name():
    with pytest.raises(UsageError, match="raise --keep above"):
        Nats().allocate(problem(0.05, PivotedFactorizer(multiple=8)))
