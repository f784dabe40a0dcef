"""compress: the whole pipeline in one call, from a model to a smaller one and its plan."""

import resource
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from slimrank.account import FILE as ACCOUNT
from slimrank.account import Account, curves_of
from slimrank.calibrate.reading import Reading, read_windows
from slimrank.checkpoint import model_card, write_checkpoint
from slimrank.errors import UsageError
from slimrank.estimate import Announce, estimate, silent
from slimrank.evaluate import count_parameters, weight_bytes
from slimrank.forms import compressed_layers
from slimrank.limits import Limits
from slimrank.load import Loaded, load, require_dense
from slimrank.model import Decoder, Filter, require_finite_weights
from slimrank.pipeline import calibrate, decompose_all, factorize, make_plan, rebuilt, refine
from slimrank.plan import Plan, check_plan
from slimrank.progress import Track, no_track
from slimrank.recipe import Recipe, load_recipe
from slimrank.resume import identify, progress_of
from slimrank.session import Session
from slimrank.spectrum import Spectrum
from slimrank.store.pieces import MemoryPieces, Pieces
from slimrank.versions import versions


@dataclass
class Result:
    """A compressed model in memory and the account of it. parameters: of the whole model, before and after."""

    loaded: Loaded
    plan: Plan
    spectrum: Spectrum
    parameters: tuple[int, int]
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def model(self) -> PreTrainedModel:
        """The compressed model, in the dtype it was computed in."""
        return self.loaded.model

    def save(self, out: Path, *, overwrite: bool = False, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Write the Hugging Face directory, in the dtype the model was stored in; `tensors`: see write_checkpoint."""
        write_checkpoint(
            self.model,
            out,
            layers=compressed_layers(self.model),
            dtype=self.loaded.dtype,
            source=self.loaded.directory,
            tokenizer=self.loaded.tokenizer,
            extras={
                "slimrank/plan.json": self.plan.to_json(),
                ACCOUNT: self.account().to_json(),
                "README.md": self.card(out.name),
            },
            overwrite=overwrite,
            tensors=tensors,
        )

    def account(self) -> Account:
        """What the run measured beside the plan; the bytes of a hub model are what its stored dtype takes."""
        loaded, (before, after) = self.loaded, self.parameters
        size, directory = loaded.dtype.itemsize, loaded.directory
        return Account(
            model=loaded.name,
            device=str(loaded.weights.device if loaded.weights else self.model.device),
            computed=str(self.model.dtype).removeprefix("torch."),
            stored=str(loaded.dtype).removeprefix("torch."),
            parameters={"dense": before, "compressed": after},
            dense_bytes=weight_bytes(directory) if directory else before * size,
            seconds=self.seconds,
            memory=peak_memory(),
            versions=versions(),
            curves=curves_of(self.spectrum, {name: linear.rank for name, linear in self.plan.linears.items()}),
        )

    def card(self, name: str) -> str:
        """The model card."""
        budget, (before, after) = self.plan.budget, self.parameters
        rows = {
            "dense": {"parameters of the linears": budget.dense, "of the model": before},
            "compressed": {"parameters of the linears": budget.used, "of the model": after},
        }
        hub = None if self.loaded.directory else self.loaded.name
        return model_card(name=name, recipe=self.plan.recipe.to_yaml(), results=rows, base_model=hub)

    def summary(self) -> dict[str, str]:
        """The totals, for people."""
        budget, (before, after) = self.plan.budget, self.parameters
        return {
            "recipe": self.plan.recipe.name,
            "linears": f"{budget.used:,} of {budget.dense:,} parameters ({budget.used / budget.dense:.1%})",
            "whole model": f"{after:,} of {before:,} parameters ({after / before:.1%})",
            "calibration": ", ".join(f"{key} {_short(value)}" for key, value in self.plan.calibration.items()),
        }


def compress(
    model: str | Loaded,
    recipe: str | Path | Recipe = "slimrank",
    *,
    keep: float = 0.8,
    calibration: str | None = None,
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
    out: Path | None = None,
    overwrite: bool = False,
    resume: bool = True,
    memory: int | None = None,
    announce: Announce = silent,
    track: Track = no_track,
) -> Result:
    """Compress a causal LM; the model in memory is changed in place.

    Args:
        model: hub id, directory, `demo`, or what slimrank.load gave.
        recipe: a shipped recipe's name, a YAML file, or a Recipe; `settings` are its `key=value` overrides.
        keep: share of the compressed linears' parameters that stays, in (0, 1].
        calibration: SPEC of the text (see read_text); needed unless the model is the demo.
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

    Raises:
        UsageError: for options that cannot be meant.
        SlimrankError: if the run cannot go on.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"--keep {keep} must be above 0 and at most 1: it is the share of parameters that stays.")
    chosen = plan.recipe if plan else load_recipe(recipe, settings)
    limits, clock = Limits.of(memory, device), Clock()
    with ExitStack() as stack:
        pieces: Pieces = MemoryPieces() if out is None else stack.enter_context(progress_of(out, overwrite, resume))
        with clock("load"):
            room = None if out is None else limits.weights
            loaded = model if isinstance(model, Loaded) else load(model, dtype=dtype, device=device, room=room)
            require_dense(loaded)
            if loaded.weights is None:
                require_finite_weights(loaded.model)
        before = count_parameters(loaded.model)
        decoder = Decoder(loaded.model, loaded.weights)
        decoder.states_room = limits.states
        linears = decoder.linears(filter)
        if plan:
            plan = check_plan(plan, decoder, {k: v for block in linears for k, v in block.items()})
            linears = [{k: v for k, v in block.items() if k in plan.linears} for block in linears]
        with clock("calibrate"):
            reading = Reading(calibration, samples, window, seed, special_tokens, chat)
            if plan:
                reading = Reading.again(plan.calibration, calibration)
            windows = read_windows(loaded, reading, plan.calibration["sha256"] if plan else None)
            identify(pieces, decoder, chosen, plan, plan.keep if plan else keep, windows, linears)
            if out is not None:
                anchored = any(not step.whole_model for step in chosen.refine)
                expected = estimate(
                    decoder, linears, windows.calibration, gradients=chosen.gradients, anchored=anchored
                )
                announce(expected)
                expected.check(limits, out.resolve().parent, memory is not None)
            moments, held_out = calibrate(
                decoder,
                windows,
                linears,
                labels=chosen.metric.gradient_labels if chosen.gradients else None,
                of_weights=chosen.weight_gradients,
                pieces=pieces,
                track=track,
            )
        keep = plan.keep if plan else keep
        build = not rebuilt(chosen)
        session = Session(
            decoder, linears, windows, chosen.metric, chosen.form, keep, moments, held_out,
            track=track, pieces=pieces, bases=build,
        )  # fmt: skip
        with clock("decompose"):
            decompose_all(session)
        with clock("allocate"):
            plan = plan or allocated(session, chosen)
        if not plan_only:
            with clock("factorise"):
                plan = factorize(session, plan, build=build)
            with clock("refine"):
                plan = refine(session, plan)
        result = Result(loaded, plan, session.spectrum(), (before, count_parameters(loaded.model)), clock.seconds)
        if out is not None and not plan_only:
            with clock("write"):
                tensors = decoder.weights.stored(pieces, loaded.dtype)
                result.save(out, overwrite=overwrite, tensors=tensors)
        return result


def allocated(session: Session, recipe: Recipe) -> Plan:
    """make_plan, kept among the finished pieces."""
    if "plan" not in session.pieces:
        session.pieces.save("plan", {}, make_plan(session, recipe).model_dump(mode="json"))
    return Plan.model_validate(session.pieces.load("plan")[1])


def _short(value: object) -> str:
    """A hash by its first twelve digits, a path by its end."""
    text = str(value)
    return text[:12] if len(text) == 64 and text.isalnum() else text[-60:]


class Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the block's time as this stage's."""
        started = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - started


def peak_memory() -> int:
    """The process's peak resident memory in bytes, or the device's where CUDA is used."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
