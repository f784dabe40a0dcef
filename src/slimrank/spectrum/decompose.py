"""The decompose step: the curve of every unit, saved among the run's pieces."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from torch import Tensor

from slimrank.calibrate.evidence import Evidence
from slimrank.calibrate.shelf import Shelf, forget_input_grams
from slimrank.metric import Metric
from slimrank.model.compressible import Compressible
from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams
from slimrank.numerics.threads import Job, in_threads, is_small, one_thread
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Prices, Pricing, prices_of
from slimrank.spectrum.curve import Curve, curve, curve_of
from slimrank.spectrum.decomposition import Route, decompose_weight, decompose_weight_again
from slimrank.spectrum.spectra import Decompositions, Spectra, reached, stacks_of
from slimrank.store.pieces import Pieces
from slimrank.store.run import Run


def decompose(
    model: Compressible,
    evidence: Evidence,
    metric: Metric,
    *,
    route: Route = "projector",
    keep: float = 1.0,
    stacks: bool = False,
    bases: bool = True,
    measured_later: bool = False,
    held: Decompositions | None = None,
    pricing: Pricing | None = None,
    run: Run | None = None,
) -> Spectra:
    """Evidence -> Spectra, the units distributed over the processes.

    keep: the share of parameters that stays, for metrics that depend on it; stacks: also decompose linears that share
    an input as one unit; bases: keep what later decompositions need, not the curves alone; measured_later: keep the
    held-out moments; held: known decompositions; pricing: also what rounding each linear would cost.
    """
    run = run or Run()
    held = Decompositions(run.bytes_held) if held is None else held
    leader, world = evidence.moments.leader, model.decoder.world
    singles, several = reached(model, leader), stacks_of(model, leader) if stacks else []
    blocks = [[unit for unit in (*singles, *several) if unit.block == index] for index in range(len(model.blocks))]
    units, empty = [unit for block in blocks for unit in block], Spectra(model, evidence, metric, route, held=held)
    missing = [unit for unit in units if not have_curves(run.pieces, [unit])]
    with world.apart():
        mine, done = world.dealt(missing, [unit.work for unit in missing]), set[Unit]()
        computed = in_threads(curve_job(empty, unit, keep, bases, run, pricing) for unit in mine)
        for unit, unit_curve in zip(run.track(mine, "decomposing", len(mine)), computed, strict=True):
            save_curve(run.pieces, unit, unit_curve)
            done.add(unit)
            if done.issuperset(blocks[unit.block]):
                release(evidence, run.pieces, unit.block, bases, measured_later)
    curves = {unit: load_curve(run.pieces, unit) for unit in units}
    for index in range(len(model.blocks)):
        release(evidence, run.pieces, index, bases, measured_later)
    return replace(
        empty, curves={unit: curves[unit] for unit in singles}, stacks={unit: curves[unit] for unit in several}
    )


def curve_job(
    spectra: Spectra, unit: Unit, keep: float, bases: bool, run: Run, pricing: Pricing | None = None
) -> tuple[bool, Job[Curve]]:
    """The job that computes a unit's curve, and whether it is small (see numerics.threads).

    Several linears together are not rounded, and so get no prices.
    """
    choice = spectra.choice(unit, keep)
    held_out, route = spectra.held_out_grams(unit, choice), spectra.route
    if held_out is not None and held_out.right is not None and route == "projector" and not (bases or unit.tall):
        held_out = Grams(right=held_out.right.float())  # float32 before the other Gram is allocated; see Small.left_out
    weight, grams = spectra.weight(unit), spectra.grams(unit, choice)
    small = is_small(weight.shape, weight.device)

    def by_projector() -> Curve:
        timer = nullcontext if small else partial(run.clock, "measure")
        return replace(curve(weight, grams, held_out, route, bases=bases, timer=timer), choice=choice)

    def by_whole_decomposition() -> Curve:
        decomposition = decompose_weight(weight, grams, route)
        spectra.held.hold(unit, decomposition)
        return replace(curve_of(weight, decomposition, held_out and Grams(grams.left, held_out.right)), choice=choice)

    single = len(unit.names) == 1
    if pricing is not None and single:
        return small, partial(priced_curve, weight, grams, held_out, route, pricing, bases=bases, choice=choice)
    return small, by_whole_decomposition if route != "projector" and single else by_projector


def priced_curve(
    weight: Tensor,
    grams: Grams,
    held_out: Grams | None,
    route: Route,
    pricing: Pricing,
    *,
    bases: bool,
    choice: float | None,
) -> Curve:
    """The curve of W (m, n) with what rounding would cost, from one decomposition."""
    made = curve(weight, grams, held_out, route, bases=True)
    known = None if made.basis is None else (made.values, made.basis)
    whole = decompose_weight_again(weight, grams, route, known)
    with one_thread(weight):
        prices = prices_of(weight, whole.left, whole.right, grams, pricing)
    return replace(made, basis=made.basis if bases else None, choice=choice, prices=prices)


def have_curves(pieces: Pieces, units: Iterable[Unit]) -> bool:
    """Whether the curves of all units are among the pieces."""
    return all(_key(unit) in pieces for unit in units)


def blocks_with_curves(model: Compressible, pieces: Pieces) -> list[int]:
    """Indices of the blocks whose linears all have their curves among the pieces."""
    units = list(model.units.values())
    return [
        index
        for index in range(len(model.blocks))
        if have_curves(pieces, [unit for unit in units if unit.block == index])
    ]


def _key(unit: Unit) -> str:
    return f"curves/{unit.key}"


def save_curve(pieces: Pieces, unit: Unit, curve: Curve) -> None:
    """Save a unit's curve as a piece."""
    tensors = {"values": curve.values, "measured": curve.measured, "basis": curve.basis}
    present = {key: tensor.cpu() for key, tensor in tensors.items() if tensor is not None}
    grids = [[grid.bits, grid.group, prices.dense] for grid, prices in curve.prices.items()]
    present |= {f"price-{number}": prices.factors.cpu() for number, prices in enumerate(curve.prices.values())}
    priced = {"grids": grids} if grids else {}
    pieces.save(_key(unit), present, {"damping": curve.damping, "choice": curve.choice} | priced)


def load_curve(pieces: Pieces, unit: Unit) -> Curve:
    """Load a unit's curve."""
    tensors, facts = pieces.load(_key(unit))
    prices = {
        Grid(bits, group): Prices(dense, tensors[f"price-{number}"])
        for number, (bits, group, dense) in enumerate(facts.get("grids", ()))
    }
    measured, basis = tensors.get("measured"), tensors.get("basis")
    return Curve(tensors["values"], measured, facts["damping"], basis, facts["choice"], prices)


def release(evidence: Evidence, pieces: Pieces, index: int, bases: bool, measured_later: bool) -> None:
    """Drop a block's moments that no later step needs, where pieces are on disk.

    These are the held-out moments, unless `measured_later`, and the inputs' Grams, unless `bases`.
    """
    if pieces.lasting and not measured_later:
        pieces.drop(f"held-out/{index}")
        if isinstance(evidence.held_out.inputs, Shelf):
            evidence.held_out.inputs.forget(f"held-out/{index}")
    if pieces.lasting and not bases:
        forget_input_grams(pieces, f"inputs/{index}")
