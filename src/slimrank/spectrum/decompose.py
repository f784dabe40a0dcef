"""The step from moments to spectra: every unit's curve, found once and kept among the finished pieces."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from slimrank.calibrate.evidence import Evidence
from slimrank.calibrate.shelf import Shelf, forget_input_grams
from slimrank.metric import Metric
from slimrank.model.compressible import Compressible
from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams
from slimrank.numerics.threads import Job, in_threads, is_small
from slimrank.spectrum.curve import Curve, curve, curve_of
from slimrank.spectrum.decomposition import Route, decompose_weight
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
    run: Run | None = None,
) -> Spectra:
    """Evidence -> Spectra, the work dealt out to the processes.

    keep: the share of parameters that is to stay, for metrics that choose by it; stacks: whether also of linears that
    share an input, as one unit; bases: whether decompositions will be asked for, and not the curves alone;
    measured_later: whether the held-out moments will be needed after this; held: decompositions that are known.
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
        found = in_threads(curve_job(empty, unit, keep, bases, run) for unit in mine)
        for unit, one in zip(run.track(mine, "decomposing", len(mine)), found, strict=True):
            save_curve(run.pieces, unit, one)
            done.add(unit)
            if done.issuperset(blocks[unit.block]):
                release(evidence, run.pieces, unit.block, bases, measured_later)
    curves = {unit: load_curve(run.pieces, unit) for unit in units}
    for index in range(len(model.blocks)):
        release(evidence, run.pieces, index, bases, measured_later)
    return replace(
        empty, curves={unit: curves[unit] for unit in singles}, stacks={unit: curves[unit] for unit in several}
    )


def curve_job(spectra: Spectra, unit: Unit, keep: float, bases: bool, run: Run) -> tuple[bool, Job[Curve]]:
    """What finds a unit's curve, and whether that is a small problem (see threads)."""
    choice = spectra.choice(unit, keep)
    held_out, route = spectra.held_out_grams(unit, choice), spectra.route
    if held_out is not None and held_out.right is not None and route == "projector" and not (bases or unit.tall):
        held_out = Grams(right=held_out.right.float())  # before the other Gram takes memory; see Small.left_out
    weight, grams = spectra.weight(unit), spectra.grams(unit, choice)
    small = is_small(weight.shape, weight.device)

    def by_projector() -> Curve:
        timer = nullcontext if small else partial(run.clock, "measure")
        return replace(curve(weight, grams, held_out, route, bases=bases, timer=timer), choice=choice)

    def by_whole_decomposition() -> Curve:
        found = decompose_weight(weight, grams, route)
        spectra.held.hold(unit, found)
        return replace(curve_of(weight, found, held_out and Grams(grams.left, held_out.right)), choice=choice)

    single = len(unit.names) == 1
    return small, by_whole_decomposition if route != "projector" and single else by_projector


def have_curves(pieces: Pieces, units: Iterable[Unit]) -> bool:
    """Whether the curves of all these units are among the pieces."""
    return all(_key(unit) in pieces for unit in units)


def blocks_with_curves(model: Compressible, pieces: Pieces) -> list[int]:
    """The blocks whose linears all have their curves among the pieces, as an earlier process left them."""
    units = list(model.units.values())
    return [
        index
        for index in range(len(model.blocks))
        if have_curves(pieces, [unit for unit in units if unit.block == index])
    ]


def _key(unit: Unit) -> str:
    return f"curves/{unit.key}"


def save_curve(pieces: Pieces, unit: Unit, one: Curve) -> None:
    """Keep a unit's curve."""
    tensors = {"values": one.values, "measured": one.measured, "basis": one.basis}
    given = {key: tensor.cpu() for key, tensor in tensors.items() if tensor is not None}
    pieces.save(_key(unit), given, {"damping": one.damping, "choice": one.choice})


def load_curve(pieces: Pieces, unit: Unit) -> Curve:
    """A unit's curve."""
    tensors, facts = pieces.load(_key(unit))
    return Curve(tensors["values"], tensors.get("measured"), facts["damping"], tensors.get("basis"), facts["choice"])


def release(evidence: Evidence, pieces: Pieces, index: int, bases: bool, measured_later: bool) -> None:
    """Drop what a block's curves were the last to need.

    That is the held-out moments, unless something is measured on them later, and the inputs' Grams, where no
    decomposition will be asked for.
    """
    if pieces.lasting and not measured_later:
        pieces.drop(f"held-out/{index}")
        if isinstance(evidence.held_out.inputs, Shelf):
            evidence.held_out.inputs.forget(f"held-out/{index}")
    if pieces.lasting and not bases:
        forget_input_grams(pieces, f"inputs/{index}")
