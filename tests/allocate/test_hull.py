from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimrank.allocate.hull import Tradeoff, lower_hull, sweep

points = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 60)), min_size=1, max_size=6)


def curve_of(pairs):
    costs, losses = np.array(pairs, float).T
    return Tradeoff.of(costs, losses)[0]


@given(points)
def test_a_curve_keeps_exactly_the_points_that_none_beats(pairs):
    curve = curve_of(pairs)
    kept = set(zip(curve.costs, curve.losses, strict=True))
    assert kept == {(c, e) for c, e in pairs if not any((d <= c and f <= e and (d, f) != (c, e)) for d, f in pairs)}


@given(points)
def test_the_hull_is_what_some_price_prefers(pairs):
    curve = curve_of(pairs)
    hull = lower_hull(curve.costs, curve.losses)
    assert hull[0] == 0 and hull[-1] == len(curve.costs) - 1
    for price in np.linspace(0, 61, 200):
        total = curve.losses + price * curve.costs
        assert total[hull].min() == pytest.approx(total.min())
    slopes = np.diff(curve.losses[hull]) / np.diff(curve.costs[hull])
    assert (np.diff(slopes) > 0).all()


@given(st.lists(points, min_size=1, max_size=4), st.integers(0, 80))
def test_the_sweep_stays_within_the_budget_and_near_the_best_of_all_splits(raw, spare):
    curves = [curve_of(pairs) for pairs in raw]
    budget = sum(c.costs[0] for c in curves) + spare
    chosen = sweep(curves, budget)
    cost = sum(c.costs[i] for c, i in zip(curves, chosen, strict=True))
    loss = sum(c.losses[i] for c, i in zip(curves, chosen, strict=True))
    assert cost <= budget
    best = min(
        sum(c.losses[i] for c, i in zip(curves, split, strict=True))
        for split in product(*(range(len(c.costs)) for c in curves))
        if sum(c.costs[i] for c, i in zip(curves, split, strict=True)) <= budget
    )
    step = max(c.losses.max() - c.losses.min() for c in curves)
    assert best <= loss <= best + step  # the linear relaxation splits one step at most
    for c, i in zip(curves, chosen, strict=True):
        assert i + 1 == len(c.costs) or c.costs[i + 1] - c.costs[i] > budget - cost  # nothing more can be bought


def test_convex_curves_of_unit_costs_are_solved_exactly():
    rng = np.random.default_rng(0)
    gains = [np.sort(rng.random(8))[::-1] for _ in range(5)]
    curves = [Tradeoff(np.arange(9.0), g.sum() - np.concatenate([[0], g.cumsum()])) for g in gains]
    chosen = sweep(curves, 17)
    taken = np.concatenate([g[:i] for g, i in zip(gains, chosen, strict=True)])
    assert np.sort(taken)[::-1] == pytest.approx(np.sort(np.concatenate(gains))[::-1][:17])
