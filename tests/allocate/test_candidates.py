"""A budget of bytes, against every combination of options."""

import itertools

import numpy as np
import pytest
import torch

from slimrank.allocate import Problem
from slimrank.allocate.bytes import Bytes
from slimrank.allocate.candidates import Candidates
from slimrank.allocate.choices import Choices
from slimrank.allocate.hull import lower_hull
from slimrank.allocate.nats import Nats, spend_on
from slimrank.allocate.stored import Options, Stored, rank_grid
from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.model.units import Unit
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Prices
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra

SHAPES = {"a": (24, 16), "b": (16, 24), "c": (16, 16)}
UNITS = {name: Unit((name,), 0, name, (shape,)) for name, shape in SHAPES.items()}
GRIDS = (Grid(8), Grid(4, 8))


def spectra(seed=0):
    generator = torch.Generator().manual_seed(seed)
    curves = {}
    for unit in UNITS.values():
        values = torch.rand(unit.full_rank, generator=generator, dtype=torch.float64).sort(descending=True).values
        prices = {
            grid: Prices(0.3 / 4**grid.bits, torch.linspace(0, 1 / 4**grid.bits, unit.full_rank + 1).double())
            for grid in GRIDS
        }
        curves[unit] = Curve(values, prices=prices)
    return Spectra(None, None, None, curves=curves)


def every(options, made):
    """All options of each unit as (bytes, loss)."""
    for unit, curve in made.curves.items():
        ways = [Stored(), *(Stored(rank) for rank in range(1, unit.full_rank + 1))]
        for grid in GRIDS:
            ways += [Stored(None, grid), *(Stored(rank, grid) for rank in rank_grid(unit.shape))]
        yield [(options.cost.of(unit, way), curve.stored(way.rank, way.grid)) for way in ways]


def test_the_sweep_is_within_the_budget_and_near_the_best_combination():
    made, options = spectra(), Options(LowRankFactorizer(), GRIDS, Bytes(LowRankFactorizer()))
    candidates = Candidates.of(made, options, 0.05)
    combinations = list(itertools.product(*map(pareto, every(options, made))))
    hulls = [curve.costs[lower_hull(curve.costs, curve.losses)] for curve in candidates.curves]
    step = max(np.diff(hull).max() for hull in hulls)  # the sweep stops before one that no longer fits
    assert candidates.least == min(sum(cost for cost, _ in one) for one in combinations)
    for budget in np.linspace(candidates.least, candidates.most, 9):
        stored, point = candidates.within(budget), candidates.at(budget)
        cost = sum(options.cost.of(unit, way) for unit, way in stored.items())
        loss = sum(made.curves[unit].stored(way.rank, way.grid) for unit, way in stored.items())
        assert point.cost <= cost <= budget and loss <= point.loss + 1e-9
        fits = [one for one in combinations if sum(cost for cost, _ in one) <= budget - step]
        assert not fits or loss <= min(sum(loss for _, loss in one) for one in fits) + 1e-9


def pareto(options):
    """Those that nothing cheaper beats."""
    kept, least = [], float("inf")
    for cost, loss in sorted(options):
        if loss < least:
            kept.append((cost, loss))
            least = loss
    return kept


def test_the_frontier_falls_and_its_sizes_rise():
    points = Candidates.of(spectra(1), Options(LowRankFactorizer(), GRIDS, Bytes(LowRankFactorizer())), 0.05).frontier
    assert len(points) == 20
    assert all(a.cost <= b.cost and a.loss >= b.loss for a, b in itertools.pairwise(points))


def test_nats_offers_its_own_grids_and_what_is_spent_lies_within_the_budget():
    allocator, cost = Nats(widths=(4, 8), groups=(8,)), Bytes(LowRankFactorizer())
    candidates = allocator.candidates(Problem(1.0, LowRankFactorizer(), spectra()), cost)
    for budget in (candidates.least, 1500):  # the same candidates for any budget
        allocation = spend_on(candidates, budget)
        assert set(allocation.ranks) == set(UNITS.values()) and set(allocation.grids.values()) <= {Grid(8), Grid(4, 8)}
        stored = {unit: Stored(rank, allocation.grids.get(unit)) for unit, rank in allocation.ranks.items()}
        assert sum(cost.of(unit, one) for unit, one in stored.items()) <= budget
        assert stored == Candidates.of(spectra(), Options(LowRankFactorizer(), GRIDS, cost), 0.05).within(budget)
    with pytest.raises(UsageError, match="calibrate"):
        Nats(calibrate=True).candidates(Problem(1.0, LowRankFactorizer(), spectra()), cost)


def test_ranks_of_rounded_factors_are_multiples_where_matrices_are_large():
    assert list(rank_grid((576, 576)))[:2] == [32, 64] and max(rank_grid((576, 576))) < 288
    assert list(rank_grid((24, 16)))[:3] == [1, 2, 3]


def test_options_that_cost_more_than_dense_are_left_out():
    options = Options(LowRankFactorizer(), (), Bytes(LowRankFactorizer()))
    unit = UNITS["a"]
    choices = options.of_floats(unit, spectra().curves[unit])
    assert isinstance(choices, Choices) and max(choices.costs) < options.cost.of(unit, Stored())
