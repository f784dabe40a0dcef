"""A budget of seconds, with invented times."""

import itertools

import numpy as np
import pytest
import torch

from slimrank.allocate import Problem
from slimrank.allocate.candidates import Candidates
from slimrank.allocate.nats import Nats, spend_on
from slimrank.allocate.seconds import Seconds, Times, named, too_fast
from slimrank.allocate.stored import Options, Stored, rank_grid
from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.model.units import Unit, stacked
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Prices
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra

GRID = Grid(4, 32)
A, B = Unit(("a",), 0, "a", ((24, 16),)), Unit(("b",), 0, "b", ((16, 24),))
LINES = {
    "24x16 dense": [(16, 3.0)],
    "24x16 low_rank": [(1, 0.5), (8, 1.9)],
    "24x16 dense 4b32": [(16, 1.6)],
    "24x16 low_rank 4b32": [(1, 0.4), (9, 1.3)],
    "16x24 dense": [(16, 2.5)],
    "16x24 low_rank": [(1, 0.9), (4, 0.8), (8, 1.5)],  # 4 is quicker than 1, which is noise
    "16x24 dense 4b32": [(16, 2.0)],
    "16x24 low_rank 4b32": [(1, 0.3), (9, 1.1)],
}


def cost():
    return Seconds(LowRankFactorizer(), Times(LINES))


def spectra(seed=0):
    generator = torch.Generator().manual_seed(seed)
    curves = {}
    for unit in (A, B):
        values = torch.rand(unit.full_rank, generator=generator, dtype=torch.float64).sort(descending=True).values
        factors = torch.linspace(0, 0.004, unit.full_rank + 1).double()
        curves[unit] = Curve(values, prices={GRID: Prices(0.01, factors)})
    return Spectra(None, None, None, curves=curves)


@pytest.mark.parametrize(
    ("rank", "seconds"), [(1, 0.9), (2, 0.9), (4, 0.9), (6, 0.9 + 0.6 / 2), (8, 1.5), (12, 1.5 * 12 / 8)]
)
def test_times_lie_between_measured_ranks_and_never_fall(rank, seconds):
    assert Times(LINES).at("16x24 low_rank", rank) == pytest.approx(seconds)


def test_times_below_the_least_rank_are_its_own_and_unknown_layers_are_named():
    times = Times({"64x64 pivoted": [(32, 2.0), (16, 1.0)]})
    assert times.at("64x64 pivoted", 8) == 1.0 and times.least([(64, 64)]) == 1.0
    with pytest.raises(UsageError, match=r"^The plan's time.seconds has no 64x64 dense 8b: "):
        times.at(named([(64, 64)], "dense", Grid(8)), 64)


def test_a_unit_costs_what_its_layers_were_measured_to_take():
    own = cost()
    assert own.of(A, Stored()) == 3.0 and own.of(B, Stored()) == 2.5
    assert own.of(A, Stored(8)) == 1.9 and own.of(A, Stored(None, GRID)) == 1.6
    assert own.of(B, Stored(5, GRID)) == pytest.approx(0.3 + 0.8 / 2)
    assert own.knows(GRID) and not own.knows(Grid(8)) and not own.knows(Grid(4, 64))


def test_linears_together_are_measured_together_and_dense_one_by_one():
    q, k = Unit(("q",), 0, "q", ((16, 16),)), Unit(("k",), 0, "k", ((8, 16),))
    lines = {"16x16 dense": [(16, 2.0)], "8x16 dense": [(8, 1.5)], "16x16+8x16 joint": [(4, 1.0), (8, 2.0)]}
    own = Seconds(PivotedFactorizer(joint=True), Times(lines))
    both = stacked([q, k])
    assert own.of(both, Stored()) == 3.5 and own.of(both, Stored(6)) == 1.5


def test_ranks_are_multiples_that_kernels_and_the_form_take():
    own = Seconds(LowRankFactorizer(multiple=48), Times({}))
    assert own.multiple(Unit(("a",), 0, "a", ((576, 576),))) == 96
    assert cost().multiple(A) == 1


def every(unit, curve):
    """All options of a unit as (seconds, loss)."""
    ways = [Stored(), *(Stored(rank) for rank in range(1, unit.full_rank + 1)), Stored(None, GRID)]
    ways += [Stored(rank, GRID) for rank in rank_grid(unit.shape)]
    return [(cost().of(unit, way), curve.stored(way.rank, way.grid)) for way in ways]


def test_the_sweep_is_within_the_seconds_and_near_the_best_of_all_combinations():
    made = spectra()
    candidates = Candidates.of(made, Options(LowRankFactorizer(), [GRID], cost()), 0.05)
    pairs = list(itertools.product(*(every(unit, curve) for unit, curve in made.curves.items())))
    assert candidates.least == pytest.approx(min(a[0] + b[0] for a, b in pairs))
    for budget in np.linspace(candidates.least, 5.5, 12):
        stored = candidates.within(budget)
        taken = sum(cost().of(unit, way) for unit, way in stored.items())
        loss = sum(made.curves[unit].stored(way.rank, way.grid) for unit, way in stored.items())
        best = min(a[1] + b[1] for a, b in pairs if a[0] + b[0] <= budget)
        assert taken <= budget + 1e-12 and best <= loss + 1e-12
        smaller = [a[1] + b[1] for a, b in pairs if a[0] + b[0] <= budget - 0.5]
        assert not smaller or loss <= min(smaller) + 1e-9


def test_nats_offers_what_was_timed_and_spends_seconds():
    problem = Problem(1.0, LowRankFactorizer(), spectra())
    candidates = Nats(groups=(32, 64)).candidates(problem, cost())  # no time is known of groups of 64
    allocation = spend_on(candidates, 2.0)
    taken = sum(cost().of(unit, Stored(rank, allocation.grids.get(unit))) for unit, rank in allocation.ranks.items())
    assert taken <= 2.0 and set(allocation.grids.values()) <= {GRID}
    assert candidates.least == pytest.approx(0.4 + 0.3)
    assert all(0.7 - 1e-9 <= point.cost <= 5.5 for point in candidates.frontier)


def test_a_speed_that_nothing_reaches_is_refused_with_the_fastest():
    assert str(too_fast(6.5, 1.7, 13 / 3)).startswith("--speedup 4.3333 is more than any plan reaches")
    assert "the fastest possible is 3.823, " in str(too_fast(6.5, 1.7, 13 / 3))


def test_all_the_time_of_the_dense_model_changes_nothing():
    candidates = Nats(widths=()).candidates(Problem(1.0, LowRankFactorizer(), spectra()), cost())
    assert spend_on(candidates, 5.5).ranks == {A: None, B: None}
