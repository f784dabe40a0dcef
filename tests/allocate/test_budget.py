import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.allocate import Problem, Uniform
from slimrank.allocate.budget import used
from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.model.units import Unit
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra

shapes = st.lists(st.tuples(st.integers(2, 90), st.integers(2, 90)), min_size=1, max_size=8)


def problem(shapes, keep):
    curves = {Unit((f"l{i}",), i, "x", (s,)): Curve(torch.ones(min(s))) for i, s in enumerate(shapes)}
    return Problem(keep, LowRankFactorizer(), Spectra(None, None, None, curves=curves))


@given(shapes, st.floats(0.05, 1))
@settings(max_examples=200, deadline=None)
def test_uniform_never_overshoots_and_is_within_a_rank_of_each_share(shapes, keep):
    task = problem(shapes, keep)
    try:
        ranks = Uniform().allocate(task).ranks
    except UsageError:
        assert sum(m + n for m, n in shapes) > task.budget
        return
    assert used(task, ranks) <= task.budget
    mended = any((m + n) > keep * m * n for m, n in shapes)  # rank 1 took more than its share somewhere
    for (m, n), rank in zip(shapes, ranks.values(), strict=True):
        if keep < 1 and not mended:
            assert rank * (m + n) <= keep * m * n + 1e-6 < (rank + 1) * (m + n)


def test_keep_one_leaves_everything_dense():
    assert set(Uniform().allocate(problem([(8, 12), (30, 9)], 1.0)).ranks.values()) == {None}


def test_a_budget_below_rank_one_everywhere_is_refused_with_the_least_keep():
    with pytest.raises(UsageError, match=r"rank 1 in every linear needs 20: give --keep 0\.2084 or more"):
        Uniform().allocate(problem([(8, 12)], 0.1))


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1), st.integers(1, 16))
@settings(max_examples=200, deadline=None)
def test_rank_for_is_the_largest_multiple_within_the_budget(m, n, keep, multiple):
    form, budget = LowRankFactorizer(multiple=multiple), keep * m * n
    rank = form.rank_for([(m, n)], budget)
    assert form.cost([(m, n)], rank) <= budget
    assert rank % multiple == 0 or rank == min(m, n)
    assert rank + multiple > min(m, n) or form.cost([(m, n)], rank + multiple) > budget or rank == min(m, n)
