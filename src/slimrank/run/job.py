"""One compression: its inputs as a Job, and its steps in order."""

from dataclasses import dataclass
from pathlib import Path

import torch

from slimrank.allocate.budget import require_room
from slimrank.budget.asked import RunBudget
from slimrank.calibrate.evidence import calibrate
from slimrank.calibrate.follow import follow
from slimrank.calibrate.needs import Needs
from slimrank.forms.experts import unfold
from slimrank.forms.linear import shape_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder, Filter
from slimrank.model.globs import Globs
from slimrank.model.load import Loaded, load, require_dense
from slimrank.model.modules import require_finite_weights
from slimrank.plan import Plan
from slimrank.recipe import Recipe
from slimrank.run.check_plan import check_plan
from slimrank.run.steps import allocate, decompose, factorize, refine
from slimrank.run.trial import short_windows
from slimrank.runtime.memory import Limits, trim
from slimrank.runtime.world import ALONE, World
from slimrank.spectrum.decompose import blocks_with_curves
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.reading import Reading, read_windows
from slimrank.texts.windows import Windows


@dataclass(frozen=True)
class Job:
    """The inputs of a compression; plan: applied instead of allocating, unless it is None; budget: instead of keep."""

    loaded: Loaded
    model: Compressible
    windows: Windows
    recipe: Recipe
    keep: float
    plan: Plan | None
    run: Run
    budget: RunBudget | None = None


def opened(
    model: str | Path | Loaded, *, device: str, dtype: str, limits: Limits, from_disk: bool, world: World = ALONE
) -> tuple[Loaded, Decoder]:
    """The dense model, in memory or, with `from_disk`, loaded a block at a time within the limits.

    Raises:
        SlimrankError: if the model is already compressed, or a weight is not finite.
    """
    room = limits.weights if from_disk else None
    loaded = model if isinstance(model, Loaded) else load(str(model), dtype=dtype, device=device, room=room)
    require_dense(loaded)
    if loaded.weights is None:
        require_finite_weights(loaded.model)
        unfold(loaded.model)
    decoder = Decoder(loaded.model, loaded.weights, world=world, states_room=limits.states)
    follow(decoder, short_windows(loaded))
    return loaded, decoder


def chosen_linears(
    decoder: Decoder,
    recipe: Recipe,
    keep: float,
    plan: Plan | None,
    filter: Filter | None,
    stored: torch.dtype = torch.bfloat16,
) -> tuple[Compressible, Plan | None]:
    """The linears to compress, and the plan checked against them; stored: the dtype of the checkpoint's floats.

    Raises:
        UsageError: if the plan does not fit the model, or `keep` is too little for rank 1 everywhere.
    """
    model = Compressible.of(decoder, filter)
    if isinstance(filter, Globs):
        filter.require_matches()
    if plan is None:
        require_room(keep, recipe.form, [shape_of(linear) for linear in model.linears.values()])
        return model, None
    plan = check_plan(plan, model, stored)
    named = [{k: v for k, v in block.items() if k in plan.linears} for block in model.blocks]
    return Compressible(decoder, named), plan


def windows_of(loaded: Loaded, reading: Reading, plan: Plan | None) -> Windows:
    """The calibration windows; with a plan those it was made from, whose texts `reading` may name again."""
    if plan is None:
        return read_windows(loaded, reading)
    return read_windows(loaded, Reading.again(plan.calibration, reading.spec), plan.calibration)


def compressed(job: Job, *, plan_only: bool = False) -> tuple[Spectra, Plan]:
    """Run the pipeline; returns the spectra and the plan. With plan_only the model stays dense."""
    model, recipe, run = job.model, job.recipe, job.run
    with run.clock("calibrate"):
        pricing = None if job.budget is None or job.plan else job.budget.pricing(recipe)
        needs = recipe.needs | Needs(ends=pricing is not None)
        evidence = calibrate(model, job.windows, needs, run, blocks_with_curves(model, run.pieces))
    with run.clock("decompose"):
        spectra = decompose(model, evidence, recipe, keep=job.keep, pricing=pricing, run=run)
        trim()
    with run.clock("allocate"):
        plan = (job.plan or allocated(spectra, recipe, job.keep, run, job.budget)).with_notes(job.loaded.notes)
        trim()
    if plan_only:
        return spectra, plan
    with run.clock("factorise"):
        plan = factorize(spectra, plan, run)
        trim()
    with run.clock("refine"):
        return spectra, refine(spectra, plan, run)


def allocated(spectra: Spectra, recipe: Recipe, keep: float, run: Run, budget: RunBudget | None = None) -> Plan:
    """The allocated plan, saved among the pieces and loaded from there if it exists."""
    if "plan" not in run.pieces:
        run.pieces.save("plan", {}, allocate(spectra, recipe, keep, run, budget).model_dump(mode="json"))
    return Plan.model_validate(run.pieces.load("plan")[1])
