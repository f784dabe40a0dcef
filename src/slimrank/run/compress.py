"""compress: the whole pipeline in one call, from a model to a smaller one and its plan."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from slimrank.allocate.budget import require_room
from slimrank.calibrate.follow import follow, windows_of
from slimrank.checkpoint.register import describe
from slimrank.checkpoint.write import require_savable
from slimrank.errors import UsageError
from slimrank.evaluate import count_parameters
from slimrank.model.decoder import Decoder, Filter, require_finite_weights
from slimrank.model.linear import shape_of
from slimrank.model.load import Loaded, load, require_dense
from slimrank.plan import Plan, check_plan
from slimrank.recipe import Recipe, load_recipe
from slimrank.run.estimate import Announce, estimate, silent
from slimrank.run.finished import finished, note
from slimrank.run.pipeline import calibrate, decompose_all, factorize, make_plan, rebuilt, refine
from slimrank.run.result import Result
from slimrank.run.resume import choices, identify, identity_of, progress_folder, shared_progress_of
from slimrank.run.session import Session
from slimrank.run.trial import trial_of
from slimrank.runtime.clock import Clock
from slimrank.runtime.memory import Limits, free_memory, give_memory_back
from slimrank.runtime.track import Track, no_track
from slimrank.runtime.world import ALONE, World
from slimrank.store.disk import size_of
from slimrank.store.pieces import MemoryPieces, Pieces
from slimrank.texts.frequencies import Frequencies
from slimrank.texts.reading import Reading, read_windows


def compress(
    model: str | Path | Loaded,
    recipe: str | Path | Recipe = "slimrank",
    *,
    keep: float = 0.8,
    calibration: str | Sequence[str] | None = None,
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
        recipe: a shipped recipe's name, a YAML file, or a Recipe; `settings` are its `key=value` overrides.
        keep: share of the compressed linears' parameters that stays, in (0, 1].
        calibration: SPEC of the text (see read_text), or a list of them, which share the windows equally or as
            `SPEC*0.3` says (see calibrate.mix); needed unless the model is the demo.
        samples, window, seed: how many windows of how many tokens; window defaults to the context, at most 2048.
        filter: (name, module) -> bool, which linears of the blocks to compress; all by default.
        plan: apply this plan instead of allocating; its recipe, keep and calibration settings hold.
        plan_only: stop before the weights are touched.
        special_tokens: begin every calibration window with the tokenizer's default special tokens (BOS).
        chat: the text's rows are chat messages, rendered by the tokenizer's template.
        device, dtype: where and in what to compute; the checkpoint is written in the stored dtype.
        out: write the checkpoint to this folder, a block at a time, the model not being in memory as a whole; what is
            finished is kept in `.NAME.progress` beside it, from which the same call goes on after a kill.
        overwrite: replace what `out` holds, once the new checkpoint is whole.
        resume: False throws such progress away.
        memory: bytes of host memory to stay within, by default what is free.
        announce: who is told the estimate of memory, disk and time, before the work begins.
        track: who shows progress.
        world: the processes that share the work, from `distributed.joined`; needs `out`, which the first one writes.

    Raises:
        UsageError: for options that cannot be meant.
        SlimrankError: if the run cannot go on.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"--keep {keep} must be above 0 and at most 1: it is the share of parameters that stays.")
    chosen = plan.recipe if plan else load_recipe(recipe, settings)
    build = not rebuilt(chosen)
    bases = build or chosen.allocate.whole_model
    out = None if out is None else Path(out)
    if world.size > 1 and out is None:
        raise UsageError("Several processes hand over their work in the folder beside out: name one.")
    device, clock = world.place(device), Clock()
    limits = Limits.of((memory or free_memory()) // world.local if world.local > 1 else memory, device)
    if memory is not None:
        give_memory_back()
    with ExitStack() as stack:
        pieces: Pieces = MemoryPieces()
        if out is not None:
            pieces = stack.enter_context(shared_progress_of(out, overwrite, resume, world))
        with clock("load"):
            room = None if out is None else limits.weights
            loaded = model if isinstance(model, Loaded) else load(str(model), dtype=dtype, device=device, room=room)
            require_dense(loaded)
            if loaded.weights is None:
                require_finite_weights(loaded.model)
        before = count_parameters(loaded.model)
        decoder = Decoder(loaded.model, loaded.weights)
        decoder.states_room, decoder.world = limits.states, world
        short = windows_of(loaded.tokenizer, loaded.model.config.get_text_config().vocab_size)
        require_savable(loaded.model, loaded.files)
        follow(decoder, short)
        linears = decoder.linears(filter)
        if plan:
            plan = check_plan(plan, decoder, {k: v for block in linears for k, v in block.items()})
            linears = [{k: v for k, v in block.items() if k in plan.linears} for block in linears]
            keep = plan.keep
        else:
            require_room(keep, chosen.form, [shape_of(m) for block in linears for m in block.values()])
        with clock("calibrate"):
            reading = Reading(calibration, samples, window, seed, special_tokens, chat)
            if plan:
                reading = Reading.again(plan.calibration, calibration)
            windows = read_windows(loaded, reading, plan.calibration if plan else None)
            identify(pieces, identity_of(decoder, windows, linears) | choices(chosen, plan, keep))
            if out is not None:
                done = finished(pieces, out, loaded, overwrite=overwrite, device=device)
                if done is not None:
                    return done
                mine = world.share(windows.calibration)
                expected = estimate(
                    decoder, linears, mine, gradients=chosen.gradients, refine=chosen.refine,
                    whole=chosen.allocate.whole_model, bases=bases and chosen.metric.route == "projector",
                    joins=chosen.form.joins,
                )  # fmt: skip
                announce(expected)
                expected.check(limits, out.resolve().parent, memory is not None, size_of(progress_folder(out)))
            moments, held_out = calibrate(
                decoder,
                windows,
                linears,
                labels=chosen.metric.gradient_labels if chosen.gradients else None,
                gradients_on=chosen.gradient_windows(windows.calibration),
                of_weights=chosen.weight_gradients,
                pieces=pieces,
                track=track,
            )
        session = Session(
            decoder, linears, windows, chosen.metric, chosen.form, keep, moments, held_out,
            track=track, pieces=pieces, clock=clock, bases=bases,
        )  # fmt: skip
        with clock("decompose"):
            decompose_all(session)
        with clock("allocate"):
            plan = with_notes(plan or allocated(session, chosen), loaded.notes)
        if not plan_only:
            with clock("factorise"):
                plan = factorize(session, plan, build=build)
            with clock("refine"):
                plan = refine(session, plan)
            describe(loaded.model)
        parameters, tokens = (
            (before, count_parameters(loaded.model)),
            [Frequencies.of(one) for one in windows.by_text()],
        )
        result = Result(loaded, plan, session.spectrum(), parameters, clock.seconds, tokens)
        if out is not None and not plan_only:
            with clock("write"), world.apart():
                if world.main:
                    tensors, account = decoder.weights.stored(pieces, loaded.dtype), result.account()
                    note(pieces, result, account)
                    tried = trial_of(decoder, short, loaded.dtype, room)
                    result.save(out, overwrite=overwrite, tensors=tensors, account=account, trial=tried)
        return result


def with_notes(plan: Plan, notes: Sequence[str]) -> Plan:
    """The plan with these notes before its own, those that it has already left out."""
    return plan.model_copy(update={"notes": [*(one for one in notes if one not in plan.notes), *plan.notes]})


def allocated(session: Session, recipe: Recipe) -> Plan:
    """make_plan, kept among the finished pieces."""
    if "plan" not in session.pieces:
        session.pieces.save("plan", {}, make_plan(session, recipe).model_dump(mode="json"))
    return Plan.model_validate(session.pieces.load("plan")[1])
