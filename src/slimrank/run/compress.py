"""compress: the whole pipeline in one call, from a model to a smaller one and its plan."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from slimrank.budget.asked import budget_of, checked_budget
from slimrank.checkpoint import place_of, write_text
from slimrank.checkpoint.register import describe
from slimrank.checkpoint.write import require_savable
from slimrank.errors import UsageError
from slimrank.evaluate import count_parameters
from slimrank.forms.experts import fold, unfolded
from slimrank.model.decoder import Decoder, Filter
from slimrank.model.load import Loaded
from slimrank.numerics.frequencies import Frequencies
from slimrank.plan import Plan
from slimrank.recipe import Recipe, load_recipe
from slimrank.run.arguments import require_types
from slimrank.run.estimate import Announce, estimate, silent
from slimrank.run.finished import finished, note
from slimrank.run.held_out import held_out_cost
from slimrank.run.job import Job, chosen_linears, compressed, opened, windows_of
from slimrank.run.result import Result
from slimrank.run.resume import choices, identify, identity_of, progress_folder, shared_progress_of
from slimrank.run.trial import short_windows, trial_of
from slimrank.runtime.clock import Clock
from slimrank.runtime.memory import Limits, free_memory, give_memory_back, trim
from slimrank.runtime.track import Track, no_track
from slimrank.runtime.world import ALONE, World
from slimrank.store.disk import size_of
from slimrank.store.disk_weights import DiskWeights
from slimrank.store.pieces import MemoryPieces, Pieces
from slimrank.store.run import Run
from slimrank.texts.reading import Reading


def compress(
    model: str | Path | Loaded,
    recipe: str | Path | Recipe = "slimrank",
    *,
    keep: float | None = None,
    size: int | str | None = None,
    bits: float | None = None,
    speedup: float | None = None,
    tokens: int | None = None,
    calibration: Any = None,
    samples: int = 256,
    window: int | None = None,
    seed: int = 3,
    settings: Sequence[str] = (),
    filter: Filter | None = None,
    plan: Plan | None = None,
    plan_only: bool = False,
    chat: bool = False,
    special_tokens: bool = False,
    device: str = "cpu",
    dtype: str = "float32",
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = True,
    memory: int | None = None,
    announce: Announce = silent,
    track: Track = no_track,
    world: World = ALONE,
) -> Result:
    """Compress a causal LM; the model in memory is changed in place.

    Args:
        model: hub id, directory, GGUF file, `demo`, or what slimrank.load gave.
        recipe: a shipped recipe's name, a YAML file, or a Recipe.
        settings: `key=value` overrides of the recipe.
        keep: share of the compressed linears' parameters that stays, in (0, 1]; 0.8 unless another budget is given.
        size: the most bytes that the checkpoint's weights may take, a number or a text such as "90MB": linears are then
            rounded, cut, or both, wherever that loses least.
        bits: the same as mean bits of all the model's numbers.
        speedup: how many times as fast as the dense model, at least, on this device, for `tokens` at once (512, a
            prefill, by default; 1 for decoding): layers are timed first, and ranks fall where that saves time.
        calibration: SPEC of the text (see read_text), or a list of them, which share the windows equally or as
            `SPEC*0.3` says (see texts.mix); also a path, strings, a datasets.Dataset, or token ids (rows, tokens) whose
            rows are the windows (see texts.given). Needed unless the model is the demo.
        samples, window, seed: how many windows of how many tokens; window defaults to the context, at most 2048.
        filter: (name, module) -> bool, which linears of the blocks to compress; by default all. See also model.globs.
        plan: apply this plan instead of allocating; its recipe, keep and calibration settings hold.
        plan_only: stop before the weights are touched; `out` is then the plan's file.
        special_tokens: begin every calibration window with the tokenizer's default special tokens (BOS).
        chat: the text's rows are chat messages, rendered by the tokenizer's template.
        device, dtype: where and in what to compute; the checkpoint is written in the stored dtype.
        out: write the checkpoint to this folder, with one block of the model in memory at a time; finished work is kept
            in `.NAME.progress` beside it, and the same call resumes from there after a kill.
        overwrite: replace an existing `out`, once the new checkpoint is complete.
        resume: False discards such progress.
        memory: limit of host memory in bytes, by default what is free.
        announce: called with the estimate of memory, disk and time before the work begins.
        track: wraps the loops to show progress.
        world: the processes that share the work, from `runtime.world.joined`; needs `out`.

    Raises:
        UsageError: for invalid options.
        SlimrankError: if the run fails.
    """
    require_types(locals())
    asked = checked_budget(keep, size, bits, speedup, tokens)
    out, device = None if out is None else Path(out), world.place(device)
    if world.size > 1 and out is None:
        raise UsageError("Several processes exchange their work in a folder beside `out`: give --out.")
    reading = Reading(calibration, samples, window, seed, special_tokens, chat)
    chosen, keep = (plan.recipe, plan.keep) if plan else (load_recipe(recipe, settings), asked.keep)
    if plan is None:
        chosen = asked.fitting(chosen, device)
    limits = limits_of(memory, device, world)
    with pieces_of(out, plan_only, overwrite, resume, world) as pieces, ExitStack() as afterwards:
        run = Run(pieces, track, Clock())
        with run.clock("load"):
            loaded, decoder = opened(
                model, device=device, dtype=dtype, limits=limits, from_disk=out is not None, world=world
            )
        if loaded.weights is None:
            afterwards.callback(fold, loaded.model)  # also where the run fails
        before = count_parameters(loaded.model)
        if not plan_only:
            require_savable(loaded.model, loaded.files)
        with run.clock("calibrate"):
            compressible, plan = chosen_linears(decoder, chosen, keep, plan, filter, loaded.dtype)
            budget = budget_of(compressible, chosen, plan, loaded.dtype, asked, run)
            job = Job(loaded, compressible, windows_of(loaded, reading, plan), chosen, keep, plan, run, budget)
            identity = identity_of(compressible, job.windows) | choices(chosen, plan, keep, budget)
            resumed = identify(pieces, identity)
            if out is not None and not plan_only:
                result = finished(pieces, out, loaded, overwrite=overwrite, device=device)
                if result is not None:
                    return result
            if out is not None:
                progress = size_of(progress_folder(beside(out, plan_only)))
                announce_estimate(job, out, limits, announce, progress, asked=memory is not None)
        spectra, applied = compressed(job, plan_only=plan_only)
        curves = {unit.leader: curve for unit, curve in spectra.curves.items()}
        parameters, read = (before, count_parameters(loaded.model)), list(map(Frequencies.of, job.windows.by_text()))
        trim()
        with run.clock("judge"):
            quality = None if plan_only else held_out_cost(compressible, job.windows.held_out, track)
        if not plan_only:
            fold_blocks(decoder, pieces)
        describe(loaded.model)
        place = None if out is None or loaded.weights is None else loaded.name if plan_only else str(out.resolve())
        result = Result(loaded, applied, curves, parameters, run.clock.seconds, read, quality, place, resumed)
        if out is not None and plan_only:
            write_text(out, applied.to_json())
        elif out is not None:
            write(result, out, job, overwrite, limits.weights)
        return result


def limits_of(memory: int | None, device: str, world: World) -> Limits:
    """The memory limits of this process; memory: bytes of all processes on this machine, by default what is free."""
    limits = Limits.of((memory or free_memory()) // world.local if world.local > 1 else memory, device)
    if memory is not None:
        give_memory_back()
    return limits


@contextmanager
def pieces_of(out: Path | None, plan_only: bool, overwrite: bool, resume: bool, world: World) -> Iterator[Pieces]:
    """The store of finished work: in memory, or on disk beside `out` until the result is written."""
    if out is None:
        yield MemoryPieces()
        return
    with shared_progress_of(beside(out, plan_only), overwrite, resume, world) as pieces:
        yield pieces


def beside(out: Path, plan_only: bool) -> Path:
    """The path that names the progress folder: the checkpoint's folder, or FILE.run for a plan's file."""
    place = place_of(out)
    if plan_only and place.is_dir():
        raise UsageError(f"The plan's file {out} is a folder: name a file.")
    return place.with_name(f"{place.name}.run") if plan_only else out


def announce_estimate(job: Job, out: Path, limits: Limits, announce: Announce, progress: int, *, asked: bool) -> None:
    """Announce the estimate of memory, disk and time; raises an error if there is less memory or disk.

    progress: bytes of progress already on the disk; asked: the limit was given as --memory.
    """
    expected = estimate(job.model, job.windows, job.recipe, job.keep, job.loaded.dtype)
    announce(expected)
    expected.check(limits, out.resolve().parent, asked, progress)


def fold_blocks(decoder: Decoder, pieces: Pieces) -> None:
    """Put stacks in the places of compressed experts, block by block, and save them where weights stay on disk."""
    with decoder.world.apart():
        for index in range(len(decoder)):
            name = f"{decoder.prefix}.{index}."
            if not any(one.startswith(name) for one in unfolded(decoder.model)):
                continue
            with decoder.weights.hold(index):
                fold(decoder.model, name)
            if isinstance(decoder.weights, DiskWeights) and decoder.world.main:
                decoder.weights.keep(index, pieces, f"folded/{index}")


def write(result: Result, out: Path, job: Job, overwrite: bool, room: int) -> None:
    """Write the checkpoint, noting before that it is this run's; room: bytes for weights where it is then tried."""
    decoder, pieces = job.model.decoder, job.run.pieces
    with job.run.clock("write"), decoder.world.apart():
        if decoder.world.main:
            tensors, account = decoder.weights.stored(pieces, job.loaded.dtype), result.account()
            note(pieces, result, account)
            tried = trial_of(decoder, short_windows(job.loaded), room)
            result.save(out, overwrite=overwrite, tensors=tensors, account=account, trial=tried)
