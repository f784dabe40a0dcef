"""The steps of the pipeline after calibration, as functions of values.

windows -> calibrate -> Evidence -> decompose -> Spectra -> allocate -> Plan -> factorise, refine -> Plan
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial

from slimrank.allocate import Problem
from slimrank.budget.asked import RunBudget
from slimrank.calibrate.evidence import Evidence
from slimrank.evaluate import count_parameters
from slimrank.factorize.rounded import entry_of
from slimrank.factorize.shared import form_for
from slimrank.forms import compressed_layers
from slimrank.model.compressible import Compressible
from slimrank.model.fingerprint import fingerprint
from slimrank.model.units import Unit, described
from slimrank.plan import Budget, LinearPlan, Plan
from slimrank.recipe import Recipe
from slimrank.refine import Refiner
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Pricing
from slimrank.run.build import build, cuts_of, predicted
from slimrank.spectrum.curve import share
from slimrank.spectrum.decompose import decompose as decompose_units
from slimrank.spectrum.spectra import Decompositions, Spectra
from slimrank.store.run import Run
from slimrank.store.stages import Stages


def decompose(
    model: Compressible,
    evidence: Evidence,
    recipe: Recipe,
    *,
    keep: float = 1.0,
    held: Decompositions | None = None,
    pricing: Pricing | None = None,
    run: Run | None = None,
) -> Spectra:
    """Evidence -> Spectra in the recipe's metric; keep, held: see spectrum.decompose.

    pricing: what rounding is to be priced, for a budget that may go to rounded numbers.
    """
    return decompose_units(
        model,
        evidence,
        recipe.metric,
        route=recipe.route,
        keep=keep,
        stacks=recipe.form.stacks,
        shared=recipe.form.shared,
        bases=recipe.cuts_later,
        measured_later=recipe.form.searches,
        held=held,
        pricing=pricing,
        run=run,
    )


def allocate(
    spectra: Spectra, recipe: Recipe, keep: float, run: Run | None = None, budget: RunBudget | None = None
) -> Plan:
    """Spectra -> Plan; keep: the share of the linears' parameters that stays; budget: bytes or seconds instead.

    The spectra must have been priced where that may go to rounded numbers.
    """
    keep = keep if recipe.allocate.cuts and budget is None else 1.0
    problem, weights = Problem(keep, recipe.form, spectra, run or Run()), spectra.model.decoder.weights
    with weights.whole() if recipe.allocate.measures else nullcontext():
        spent = None if budget is None else budget.spend(problem, recipe)
        allocation = recipe.allocate.allocate(problem) if spent is None else spent.allocation
    plans: dict[str, LinearPlan] = {}
    for unit, rank in allocation.ranks.items():
        plans |= planned(problem, unit, rank, allocation.grids.get(unit))
    if spent is not None:
        plans = spent.counted(plans)
    plans |= experts_noted(spectra, plans)
    linears = {name: plans[name] for name in spectra.model.linears if name in plans}
    return Plan(
        keep=keep,
        model=fingerprint(spectra.model.decoder),
        calibration=spectra.evidence.windows.record,
        recipe=recipe,
        budget=Budget(dense=problem.dense, allowed=problem.budget, used=0),
        notes=[*allocation.notes, *warnings(spectra)],
        linears={},
        **(spent.recorded if spent else {}),
    ).with_linears(linears)


def planned(problem: Problem, unit: Unit, rank: int | None, grid: Grid | None = None) -> dict[str, LinearPlan]:
    """The plans of a unit's linears at a rank, of one that is rounded on its grid."""
    singles = [problem.spectra.model.units[name] for name in unit.names]
    if grid is not None:
        curve = problem.spectra.curve(unit)
        loss, form = curve.stored(rank, grid), problem.form.name if rank == 0 else entry_of(grid, rank)["form"]
        count = unit.parameters if rank is None else rank * sum(unit.shape)
        plan = LinearPlan(
            block=unit.block, role=unit.role, form=form, rank=rank, shape=unit.shape, parameters=count, loss=loss,
            relative=share(loss, curve.loss(0)), bits=grid.bits, group=grid.group,
        )  # fmt: skip
        return {unit.leader: plan}
    if rank is None:
        return {
            single.leader: LinearPlan(
                block=single.block, role=single.role, form="dense", shape=single.shape, parameters=single.parameters
            )
            for single in singles
        }
    curve = problem.spectra.curve(unit)
    form = form_for(problem.form, unit)
    costs, entries = form.costs(unit.shapes, rank), form.entries(unit.shapes, rank)
    named = problem.form.name if len(singles) == 1 else None
    return {
        single.leader: LinearPlan(
            block=single.block,
            role=single.role,
            form=named or entry["form"],
            rank=rank,
            unit=None if len(singles) == 1 else unit.leader,
            shape=single.shape,
            parameters=cost,
            loss=curve.loss(rank) if single.leader == unit.leader else 0.0,
            relative=curve.relative(rank),
        )
        for single, cost, entry in zip(singles, costs, entries, strict=True)
    }


def experts_noted(spectra: Spectra, plans: Mapping[str, LinearPlan]) -> dict[str, LinearPlan]:
    """The plans of experts' matrices, with the number of each one's expert and the tokens routed to it."""
    routed = spectra.evidence.moments.routed(name for name in plans if spectra.model.units[name].mixture)
    return {
        name: plans[name].model_copy(update={"expert": int(name.split(".")[-2]), "routed": count})
        for name, count in routed.items()
    }


def warnings(spectra: Spectra) -> list[str]:
    """Notes for the user on the calibration, a sentence each."""
    model, evidence = spectra.model, spectra.evidence
    short = [model.units[name] for name in evidence.moments.short_of_tokens()]
    damped = [unit for unit, curve in spectra.curves.items() if curve.damping]
    choices = [curve.choice for curve in spectra.curves.values() if curve.choice is not None]
    unreached = [unit for unit in model.units.values() if unit not in spectra.curves]
    experts = {name: unit for name, unit in model.units.items() if unit.mixture}
    unrouted = [experts[name] for name in evidence.moments.unrouted(experts)]
    notes = dense_notes(model)
    if unreached:
        notes.append(f"Dense, since no calibration token reached them: {described(unreached)}.")
    if unrouted:
        notes.append(
            f"No calibration token was routed to {described(unrouted)}: they are priced and cut by what reaches the "
            "other experts beside them; calibrate on more text."
        )
    if short:
        notes.append(f"Fewer calibration tokens than input channels at {described(short)}: use more --samples.")
    if damped:
        worst = max(spectra.curves[unit].damping for unit in damped)
        notes.append(
            f"Singular input Grams, damped by at most {worst:.0e} of their mean diagonal: {described(damped)}."
        )
    if choices:
        chosen = ", ".join(f"{value:.3g} for {count}" for value, count in Counter(choices).most_common())
        notes.append(f"Metric option chosen on held-out windows: {chosen} of {len(choices)} linears.")
    return notes


def dense_notes(model: Compressible) -> list[str]:
    """A sentence for each reason why matrices of the blocks stay dense, with their numbers and names."""
    decoder, by_reason = model.decoder, dict[str, dict[str, int]]()
    for name, count in decoder.outside_linears().items():
        reason = decoder.stays.get(name.rpartition(".")[0], "are in no linear layer")
        by_reason.setdefault(reason, {})[name] = count
    whole = sum(count for names in by_reason.values() for count in names.values())
    whole += sum(unit.parameters for unit in model.units.values())
    notes = []
    for reason, counts in by_reason.items():
        share = f"{sum(counts.values()) / whole:.0%} of the blocks' matrices"
        notes.append(dense_note(counts, share, f"since they {reason}"))
    others = decoder.other_linears()
    if others:
        share = f"{sum(others.values()) / count_parameters(decoder.model):.0%} of the model"
        notes.append(dense_note(others, share, f"since they are linears outside the blocks {decoder.prefix}"))
    return notes


def dense_note(counts: Mapping[str, int], share: str, reason: str) -> str:
    """A sentence on what stays dense, by name; counts: the numbers of each."""
    more = f" and {len(counts) - 3} more" if len(counts) > 3 else ""
    names = ", ".join(list(counts)[:3])
    return f"{sum(counts.values()):,} parameters ({share}) stay dense, {reason}: {names}{more}."


def factorize(spectra: Spectra, plan: Plan, run: Run | None = None) -> Plan:
    """Replace the planned linears by their layers; returns the plan with the built layers and their errors.

    Nothing is built if the first refiner builds all factors itself.
    """
    run = run or Run()
    stages, cuts = stages_of(spectra, plan, run), cuts_of(plan, spectra)
    stages.forget_unfinished([stage for stage, refiner in refiners(plan) if refiner.whole_model])
    if plan.recipe.rebuilds:
        return plan.with_linears(predicted(spectra, plan, cuts))
    return build(spectra, plan, cuts, stages, run)


def refine(spectra: Spectra, plan: Plan, run: Run | None = None) -> Plan:
    """Run the recipe's refiners in order; returns the plan with their notes and layers."""
    run = run or Run()
    stages, cuts = stages_of(spectra, plan, run), cuts_of(plan, spectra)
    decoder, notes = spectra.model.decoder, list[str]()
    for name, refiner in refiners(plan):
        stage = stages.at(name)
        work = partial(refiner.refine, spectra, cuts, run.at(stage))
        if not refiner.whole_model:
            notes += work()
            continue
        facts = stage.finished_whole()
        if facts is None:
            with decoder.weights.whole():
                facts = {"notes": work()}
                stage.finish_whole(facts)
        notes += facts["notes"]
    entries = compressed_layers(decoder.model)
    linears = {name: linear.built(entries.get(name)) for name, linear in plan.linears.items()}
    return plan.model_copy(update={"notes": [*plan.notes, *notes]}).with_linears(linears)


def stages_of(spectra: Spectra, plan: Plan, run: Run) -> Stages:
    """The stages that change the model: factorise, then each refiner."""
    decoder = spectra.model.decoder
    return Stages(["factorise", *(name for name, _ in refiners(plan))], decoder.weights, run.pieces, decoder.world)


def refiners(plan: Plan) -> Sequence[tuple[str, Refiner]]:
    """The stage name and the refiner, in order."""
    return [(f"refine-{number}", refiner) for number, refiner in enumerate(plan.recipe.refine)]
