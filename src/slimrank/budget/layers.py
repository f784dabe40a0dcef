"""Which layers are timed for a budget of seconds: what every linear may become, at a few ranks."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from slimrank.allocate.seconds import float_form, float_step, named
from slimrank.allocate.stored import rank_grid
from slimrank.evaluate.layers import Layer
from slimrank.factorize import Factorizer
from slimrank.factorize.rounded import entry_of
from slimrank.forms import Dense
from slimrank.model.units import Shape, Unit
from slimrank.rounding.grid import Grid

POINTS = 8
"""Ranks at which a form is measured."""


def layers_to_time(
    units: Iterable[Unit], stacks: Iterable[Unit], form: Factorizer, grids: Sequence[Grid]
) -> list[Layer]:
    """What linears may become, each alone, and what those that share an input may become together."""
    layers = [layer for shapes in distinct(units) for layer in layers_of(shapes, form, grids)]
    return layers + [layer for shapes in distinct(stacks) for layer in float_layers(shapes, form)]


def distinct(units: Iterable[Unit]) -> list[tuple[Shape, ...]]:
    """The shapes of units, each once."""
    return list(dict.fromkeys(unit.shapes for unit in units))


def layers_of(shapes: Sequence[Shape], form: Factorizer, grids: Sequence[Grid]) -> list[Layer]:
    """A linear's: dense, the form at some ranks, and both on every grid."""
    (shape,) = shapes
    full = min(shape)
    found = [Layer(named(shapes, Dense.form), full, shapes, [{}]), *float_layers(shapes, form)]
    for grid in grids:
        found.append(Layer(named(shapes, Dense.form, grid), full, shapes, [entry_of(grid)]))
        for rank in spread(rank_grid(shape)):
            entry = entry_of(grid, rank)
            found.append(Layer(named(shapes, entry["form"], grid), rank, shapes, [entry]))
    return found


def float_layers(shapes: Sequence[Shape], form: Factorizer) -> list[Layer]:
    """The form at some ranks in floats, of a linear or of several together."""
    full = min(sum(rows for rows, _ in shapes), shapes[0][1])
    dense, step = sum(rows * columns for rows, columns in shapes), float_step(form, shapes)
    ranks = [rank for rank in range(step, full + 1, step) if form.cost(shapes, rank) < dense]
    name = named(shapes, float_form(form, shapes))
    return [Layer(name, rank, shapes, dealt_evenly(form.entries(shapes, rank), shapes)) for rank in spread(ranks)]


def spread(ranks: Sequence[int]) -> list[int]:
    """At most POINTS of these ranks, the first and the last among them, each about as much larger than the last."""
    if len(ranks) <= POINTS:
        return list(ranks)
    wanted = np.geomspace(ranks[0], ranks[-1], POINTS)
    return sorted({min(ranks, key=lambda rank, near=near: abs(rank - near)) for near in wanted})  # type: ignore[misc]


def dealt_evenly(entries: list[dict[str, Any]], shapes: Sequence[Shape]) -> list[dict[str, Any]]:
    """The entries; of members that share pivots, each has its outputs' share of them."""
    if len(entries) == 1:
        return entries
    rank, rows, before, found = entries[0]["rank"], sum(m for m, _ in shapes), 0, list[dict[str, Any]]()
    for entry, (own, _) in zip(entries, shapes, strict=True):
        first, end = rank * before // rows, rank * (before + own) // rows
        found.append({**entry, "first": first, "own": end - first})
        before += own
    return found
