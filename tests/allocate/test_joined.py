import itertools

import numpy as np
import torch

from slimrank.allocate import Problem
from slimrank.allocate.hull import lower_hull
from slimrank.allocate.joined import Choices, sums
from slimrank.allocate.nats import Nats
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.spectrum.decomposition import LinearSpectrum, Spectrum

SHAPES = {"q": (6, 8), "k": (4, 8), "o": (8, 6)}
GROUP = ("q", "k")


def choices(name, costs, losses):
    ranks = [{name: rank} for rank in range(1, len(costs) + 1)]
    return Choices(np.array(costs, float), np.array(losses, float), ranks, [False] * len(costs))


def test_apart_is_the_hull_of_all_sums():
    a = choices("a", [1, 2, 3, 4], [9.0, 5.0, 4.5, 1.0])
    b = choices("b", [2, 3, 5], [7.0, 3.0, 0.5])
    found = sums([a, b])
    pairs = [(a.costs[i] + b.costs[j], a.losses[i] + b.losses[j]) for i, j in itertools.product(range(4), range(3))]
    for cost, loss in zip(found.costs, found.losses, strict=True):
        assert (cost, loss) in pairs
    for cost, loss in pairs:  # none is below the line between neighbours
        assert loss >= np.interp(cost, found.costs, found.losses) - 1e-12
    for ranks, cost in zip(found.ranks, found.costs, strict=True):
        assert a.costs[ranks["a"] - 1] + b.costs[ranks["b"] - 1] == cost


def problem(keep, joint_values, seed=0):
    generator = torch.Generator().manual_seed(seed)
    linears = {
        name: LinearSpectrum(
            torch.rand(min(shape), generator=generator, dtype=torch.float64).sort(descending=True).values,
            shape,
            0,
            name,
        )
        for name, shape in SHAPES.items()
    }
    joint = {GROUP: LinearSpectrum(joint_values, (10, 8), 0, "q+k")}
    return Problem(keep, Spectrum(linears), PivotedFactorizer(joint=True), None, joint)


def every(p):
    """The cost and loss of every assignment, joined or not."""
    losses = {name: one.losses().tolist() for name, one in p.spectrum.linears.items()}

    def of(name):
        shape = SHAPES[name]
        dense = shape[0] * shape[1]
        cut = [(p.form.cost(shape, rank), losses[name][rank]) for rank in range(1, min(shape) + 1)]
        return [*(one for one in cut if one[0] < dense), (dense, 0.0)]

    joined = p.joint[GROUP].losses().tolist()
    shapes = [SHAPES[name] for name in GROUP]
    group = [(sum(p.form.joint_costs(shapes, rank)), joined[rank]) for rank in range(1, 9)]
    group += [(a[0] + b[0], a[1] + b[1]) for a, b in itertools.product(of("q"), of("k"))]
    return [(a[0] + b[0], a[1] + b[1]) for a, b in itertools.product(group, of("o"))]


def spent(p, allocation):
    """The cost and loss of an allocation."""
    cost = loss = 0
    for name, rank in allocation.ranks.items():
        if name in GROUP and allocation.joint:
            continue
        shape = SHAPES[name]
        cost += shape[0] * shape[1] if rank is None else p.form.cost(shape, rank)
        loss += 0 if rank is None else p.spectrum.linears[name].losses()[rank].item()
    if allocation.joint:
        (rank,) = {allocation.ranks[name] for name in GROUP}
        cost += sum(p.form.joint_costs([SHAPES[name] for name in GROUP], rank))
        loss += p.joint[GROUP].losses()[rank].item()
    return cost, loss


def test_the_sweep_reaches_the_hull_of_all_assignments():
    joins = set()
    for seed, scale, keep in itertools.product(range(4), (0.5, 1.2, 2.0), (0.5, 0.7, 0.9)):
        values = torch.rand(8, generator=torch.Generator().manual_seed(9), dtype=torch.float64).sort(descending=True)
        p = problem(keep, scale * values.values, seed)
        allocation = Nats(gain=0).allocate(p)
        cost, loss = spent(p, allocation)
        least, all_of_them = {}, every(p)
        for c, one in all_of_them:
            least[c] = min(one, least.get(c, np.inf))
        costs = sorted(least)
        hull = [costs[i] for i in lower_hull(np.array(costs, float), np.array([least[c] for c in costs]))]
        assert cost <= p.budget
        assert loss <= least[max(c for c in hull if c <= p.budget)] + 1e-9
        assert loss >= min(one for c, one in all_of_them if c <= p.budget) - 1e-9
        joins.add(bool(allocation.joint))
    assert joins == {True, False}


def test_joining_has_to_gain_what_is_asked():
    values = torch.linspace(1.3, 0.1, 8, dtype=torch.float64)
    for seed in range(20):
        p, none = problem(0.6, values, seed), Nats(gain=0).allocate(problem(0.6, torch.full((8,), 9.0), seed))
        free = Nats(gain=0).allocate(p)
        if free.joint and spent(p, free)[1] > 0.9 * spent(p, none)[1]:
            assert Nats(gain=0.5).allocate(p).joint == ()
            return
    raise AssertionError("no seed where joining gains little")


def test_a_group_that_loses_nothing_jointly_is_joined_and_one_that_loses_much_is_not():
    low = torch.tensor([5.0, *[0.0] * 7], dtype=torch.float64)
    assert Nats().allocate(problem(0.6, low)).joint == (GROUP,)
    assert Nats().allocate(problem(0.6, torch.full((8,), 9.0, dtype=torch.float64))).joint == ()
