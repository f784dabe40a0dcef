"""The times of a model on this machine: measured once, kept for other runs, and what follows for the whole model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from slimrank.allocate.seconds import Times, too_fast
from slimrank.budget.bench import Bench, Measured
from slimrank.budget.kept import read_times, times_file, write_times
from slimrank.errors import SlimrankError
from slimrank.evaluate.layers import busy
from slimrank.runtime.machine import machine_name
from slimrank.store.run import Run

PIECE = "times"


@dataclass(frozen=True)
class Timed:
    """The times of a model in seconds. dense: all of it; rest: all that is neither a unit nor the head; heads: the head
    by its bits; notes: on where they came from."""

    times: Times
    dense: float
    rest: float
    heads: Mapping[int, float]
    machine: str
    notes: tuple[str, ...] = ()


def timed(bench: Bench, speedup: float, run: Run) -> Timed:
    """The times of a model: of this run where it is resumed, else kept ones of this machine, else measured now.

    Raises:
        UsageError: if no plan is so many times as fast as the dense model, with the fastest that is.
    """
    found, notes = bench.model.decoder.world.from_main(lambda: known_or_measured(bench, run))
    made = settled(bench, found, tuple(notes))
    least = made.rest + min(made.heads.values(), default=0.0) + fastest(bench, made.times)
    if made.dense / speedup < least:
        raise too_fast(made.dense, least, speedup)
    if PIECE not in run.pieces:
        run.pieces.save(PIECE, {}, {"measured": found.model_dump(mode="json"), "notes": list(notes)})
    return made


def settled(bench: Bench, found: Measured, notes: tuple[str, ...]) -> Timed:
    """What measurements say of the whole model: what a block takes beside its linears is what no choice changes."""
    times, units = Times(found.lines), bench.model.units
    linears = [sum(times.dense(units[name].shapes) for name in block) for block in bench.model.blocks]
    blocks = [found.blocks[kind] for kind in bench.kinds]
    rest = sum(max(0.0, block - own) for block, own in zip(blocks, linears, strict=True))
    dense = rest + found.heads.get(16, 0.0) + sum(linears)
    return Timed(times, dense, rest, found.heads, machine_name(bench.device), notes)


def fastest(bench: Bench, times: Times) -> float:
    """The fewest seconds that all units can take."""
    together = {name: stack for stack in bench.stacks for name in stack.names}
    single = {unit.leader: times.least(unit.shapes) for unit in bench.model.units.values()}
    alone = sum(seconds for name, seconds in single.items() if name not in together)
    several = (min(times.least(one.shapes), sum(single[name] for name in one.names)) for one in bench.stacks)
    return alone + sum(several)


def known_or_measured(bench: Bench, run: Run) -> tuple[Measured, Sequence[str]]:
    """Measurements, and notes on where they came from."""
    if PIECE in run.pieces:
        facts = run.pieces.load(PIECE)[1]
        return Measured.model_validate(facts["measured"]), facts["notes"]
    path, machine, key, notes = times_file(), machine_name(bench.device), bench.key, list[str]()
    try:
        kept = read_kept(bench)
        if kept is not None:
            return kept, []
    except ValueError as error:  # a ValidationError is one
        why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        notes.append(f"The times kept in {path} can't be used ({why[:200]}), so layers were timed anew.")
    found = bench.measure(run)
    if said := busy(bench.device):
        notes.append(f"{said} To do so, remove {path}.")
    try:
        write_times(path, machine, key, found.model_dump(mode="json"))
    except SlimrankError as error:
        notes.append(f"The measured times were not kept for other runs: {error}")
    return found, notes


def kept_times(bench: Bench) -> Timed | None:
    """The times of a model that were kept on this machine; None where there are none that can be used."""
    try:
        kept = read_kept(bench)
    except ValueError:  # a budget of seconds says what is wrong with the file
        return None
    return None if kept is None else settled(bench, kept, ())


def read_kept(bench: Bench) -> Measured | None:
    """The measurements of a model in the user's cache folder, if it has some.

    Raises:
        ValueError: if they can't be read, or lack a block or a layer.
    """
    kept = read_times(times_file(), machine_name(bench.device), bench.key)
    if kept is None:
        return None
    found = Measured.model_validate(kept)
    there = {(name, rank) for name, points in found.lines.items() for rank, _ in points}
    missing = next((layer.key for layer in bench.layers if (layer.name, layer.rank) not in there), None)
    if missing is not None or len(found.blocks) != len(bench.firsts) or found.heads.keys() != bench.heads.keys():
        raise ValueError(f"it lacks {missing or 'a block or head'}")
    return found
