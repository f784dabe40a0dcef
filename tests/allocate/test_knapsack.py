import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimrank.allocate.knapsack import knapsack
from slimrank.errors import UsageError

OPTION = st.tuples(st.integers(0, 30), st.integers(-50, 50))
GROUPS = st.lists(st.lists(OPTION, min_size=1, max_size=4), min_size=1, max_size=5)


def brute_force(groups: list[list[tuple[int, int]]], budget: int) -> int | None:
    sums = [tuple(map(sum, zip(*options, strict=True))) for options in itertools.product(*groups)]
    return min((loss for cost, loss in sums if cost <= budget), default=None)


def solved(groups: list[list[tuple[int, int]]], budget: int, units: int = 10_000) -> tuple[int, int]:
    costs, losses = ([[option[i] for option in group] for group in groups] for i in (0, 1))
    chosen = knapsack(costs, losses, budget, units=units)
    return (
        sum(c[o] for c, o in zip(costs, chosen, strict=True)),
        sum(v[o] for v, o in zip(losses, chosen, strict=True)),
    )


@settings(max_examples=150, deadline=None)
@given(GROUPS, st.integers(0, 120))
def test_is_brute_force_where_the_units_are_fine(groups, budget):
    best = brute_force(groups, budget)
    if best is None:
        with pytest.raises(UsageError, match="--keep leaves"):
            solved(groups, budget)
    else:
        cost, loss = solved(groups, budget)
        assert cost <= budget and loss == best


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(20, 120), st.integers(1, 15))
def test_coarse_units_never_overshoot_and_leave_no_single_change_undone(groups, budget, units):
    if brute_force(groups, budget) is None:
        return
    costs, losses = ([[option[i] for option in group] for group in groups] for i in (0, 1))
    chosen = knapsack(costs, losses, budget, units=units)
    total = sum(c[o] for c, o in zip(costs, chosen, strict=True))
    assert total <= budget
    for cost, loss, option in zip(costs, losses, chosen, strict=True):
        assert all(v >= loss[option] for c, v in zip(cost, loss, strict=True) if total - cost[option] + c <= budget)


def test_equal_losses_that_bend_upwards_give_equal_options():
    costs = [[10_007 * share for share in range(1, 11)]] * 7
    losses = [[1 / share for share in range(1, 11)]] * 7
    assert knapsack(costs, losses, 7 * 6 * 10_007, units=10_000) == [5] * 7
