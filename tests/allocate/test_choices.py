import itertools

import numpy as np
import torch

from slimrank.allocate import Problem
from slimrank.allocate.choices import Choices, sums
from slimrank.allocate.hull import lower_hull
from slimrank.allocate.nats import Nats
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.model.units import Unit, stacked
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra

SHAPES = {"q": (6, 8), "k": (4, 8), "o": (8, 6)}
UNITS = {name: Unit((name,), 0, name, (shape,)) for name, shape in SHAPES.items()}
STACK = stacked([UNITS["q"], UNITS["k"]])


def choices(unit, costs, losses):
    ranks = [{unit: rank} for rank in range(1, len(costs) + 1)]
    return Choices(np.array(costs, float), np.array(losses, float), ranks)


def test_one_by_one_is_the_hull_of_all_sums():
    q, k, _ = UNITS.values()
    a = choices(q, [1, 2, 3, 4], [9.0, 5.0, 4.5, 1.0])
    b = choices(k, [2, 3, 5], [7.0, 3.0, 0.5])
    found = sums([a, b])
    pairs = [(a.costs[i] + b.costs[j], a.losses[i] + b.losses[j]) for i, j in itertools.product(range(4), range(3))]
    for cost, loss in zip(found.costs, found.losses, strict=True):
        assert (cost, loss) in pairs
    for cost, loss in pairs:  # none is below the line between neighbours
        assert loss >= np.interp(cost, found.costs, found.losses) - 1e-12
    for ranks, cost in zip(found.made, found.costs, strict=True):
        assert a.costs[ranks[q] - 1] + b.costs[ranks[k] - 1] == cost


def problem(keep, values_as_one, seed=0):
    generator = torch.Generator().manual_seed(seed)
    curves = {
        unit: Curve(torch.rand(unit.full_rank, generator=generator, dtype=torch.float64).sort(descending=True).values)
        for unit in UNITS.values()
    }
    spectra = Spectra(None, None, None, curves=curves, stacks={STACK: Curve(values_as_one)})
    return Problem(keep, PivotedFactorizer(joint=True), spectra)


def every(p):
    """The cost and loss of every assignment, q and k as one or not."""

    def cut(unit, ranks):
        losses = p.spectra.curve(unit).losses().tolist()
        return [(p.form.cost(unit.shapes, rank), losses[rank]) for rank in ranks]

    def of(name):
        shape = SHAPES[name]
        dense = shape[0] * shape[1]
        return [*(one for one in cut(UNITS[name], range(1, min(shape) + 1)) if one[0] < dense), (dense, 0.0)]

    both = cut(STACK, range(1, 9))
    both += [(a[0] + b[0], a[1] + b[1]) for a, b in itertools.product(of("q"), of("k"))]
    return [(a[0] + b[0], a[1] + b[1]) for a, b in itertools.product(both, of("o"))]


def spent(p, allocation):
    """The cost and loss of an allocation, in which every linear is once."""
    assert sorted(name for unit in allocation.ranks for name in unit.names) == sorted(SHAPES)
    cost = loss = 0
    for unit, rank in allocation.ranks.items():
        cost += unit.shape[0] * unit.shape[1] if rank is None else p.form.cost(unit.shapes, rank)
        loss += 0 if rank is None else p.spectra.curve(unit).losses()[rank].item()
    return cost, loss


def test_the_sweep_reaches_the_hull_of_all_assignments():
    as_one = set()
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
        as_one.add(STACK in allocation.ranks)
    assert as_one == {True, False}


def test_one_factorisation_has_to_gain_what_is_asked():
    values = torch.linspace(1.3, 0.1, 8, dtype=torch.float64)
    for seed in range(20):
        p, none = problem(0.6, values, seed), Nats(gain=0).allocate(problem(0.6, torch.full((8,), 9.0), seed))
        free = Nats(gain=0).allocate(p)
        if STACK in free.ranks and spent(p, free)[1] > 0.9 * spent(p, none)[1]:
            assert STACK not in Nats(gain=0.5).allocate(p).ranks
            return
    raise AssertionError("no seed where one factorisation gains little")


def test_a_unit_that_loses_nothing_as_one_becomes_one_and_one_that_loses_much_does_not():
    low = torch.tensor([5.0, *[0.0] * 7], dtype=torch.float64)
    assert STACK in Nats().allocate(problem(0.6, low)).ranks
    assert STACK not in Nats().allocate(problem(0.6, torch.full((8,), 9.0, dtype=torch.float64))).ranks
