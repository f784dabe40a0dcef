"""The steps of the pipeline, each a function from one plain value to the next."""

from collections import Counter

from torch import Tensor, nn

from slimrank.allocate import Problem
from slimrank.allocate.budget import cost
from slimrank.calibrate import Moments, Windows, collect, collect_gradients
from slimrank.calibrate.gradients import Labels
from slimrank.metric import Grams
from slimrank.metric.grams import squared_error
from slimrank.model import Decoder, set_module
from slimrank.plan import Budget, LinearPlan, Plan, fingerprint
from slimrank.progress import Track, no_track
from slimrank.recipe import Recipe
from slimrank.session import Session
from slimrank.spectrum import decompose


def calibrate(
    decoder: Decoder,
    windows: Windows,
    linears: list[dict[str, nn.Module]],
    *,
    labels: Labels | None = None,
    track: Track = no_track,
) -> tuple[Moments, Moments]:
    """Texts -> Moments, of the calibration windows and of the held-out ones; with `labels`, of gradients too."""
    moments = collect(decoder, windows.calibration, linears, track=track)
    held_out = collect(decoder, windows.held_out, linears)
    if labels:
        seed = windows.record["seed"]
        collect_gradients(decoder, windows.calibration, linears, moments, labels=labels, seed=seed, track=track)
    return moments, held_out


def decompose_all(session: Session) -> None:
    """Moments -> the optimum at every rank, for every linear, kept in the session."""
    names = list(session.dense)
    for name in session.track(names, "decomposing", len(names)):
        site = session.site(name)
        session.decompositions[name] = decompose(site.weight, session.metric.grams(site), session.metric.route)


def make_plan(session: Session, recipe: Recipe) -> Plan:
    """Spectrum -> Plan."""
    problem = Problem(session.keep, session.spectrum(), session.form, session)
    allocation = recipe.allocate.allocate(problem)
    linears = {}
    for name, spectrum in problem.spectrum.linears.items():
        rank, losses = allocation.ranks[name], spectrum.losses()
        loss = 0.0 if rank is None else losses[rank].item()
        if rank is not None and recipe.form.searches:
            loss = recipe.form.loss(session.target(name), rank)
        linears[name] = LinearPlan(
            block=spectrum.block,
            role=spectrum.role,
            form="dense" if rank is None else recipe.form.name,
            rank=rank,
            shape=spectrum.shape,
            parameters=cost(problem, name, rank),
            loss=loss,
            relative=relative(loss, losses[0].item()),
        )
    used = sum(linear.parameters for linear in linears.values())
    return Plan(
        keep=problem.keep,
        model=fingerprint(session.decoder.model),
        calibration=session.windows.record,
        recipe=recipe,
        budget=Budget(dense=problem.dense, allowed=problem.budget, used=used),
        notes=[*allocation.notes, *warnings(session)],
        linears=linears,
    )


def warnings(session: Session) -> list[str]:
    """What the user should know of the calibration, a sentence each."""
    short = session.moments.short_of_tokens()
    damped = [name for name, d in session.decompositions.items() if d.damping]
    outside = session.decoder.outside_linears()
    notes = []
    if outside:
        notes.append(
            f"{sum(outside.values()):,} parameters are in no linear (fused?) and stay dense: {', '.join(outside)}."
        )
    if short:
        notes.append(f"Fewer calibration tokens than input channels at {', '.join(short)}: use more --samples.")
    if damped:
        worst = max(session.decompositions[name].damping for name in damped)
        notes.append(f"The Gram needed damping, at most {worst:.0e} of its mean diagonal, at {', '.join(damped)}.")
    if session.choices:
        counts = Counter(session.choices.values()).most_common()
        chosen = ", ".join(f"{value:.3g} for {count}" for value, count in counts)
        notes.append(f"The metric's own choice on held-out windows was {chosen} of {len(session.choices)} linears.")
    return notes


def factorize(session: Session, plan: Plan) -> Plan:
    """Plan -> Factors, put in the place of the dense linears; returns the plan with what was built and measured."""
    metric, planned = session.metric, dict(plan.linears)
    chosen = [(name, linear.rank) for name, linear in plan.linears.items() if linear.rank is not None]
    for name, rank in session.track(chosen, "factorising", len(chosen)):
        site, target = session.site(name), session.target(name)
        layer = session.form.build(target, rank)
        entry, loss = layer.entry(), session.form.loss(target, rank)
        parameters = layer.count_parameters(*plan.linears[name].shape, entry)
        built = {"form": layer.form, "layer": entry, "parameters": parameters, "loss": loss}
        built["relative"] = relative(loss, target.decomposition.loss(0))
        planned[name] = planned[name].model_copy(update=built)
        held_out = metric.held_out_grams(site)
        if held_out is not None:
            measured = relative_error(site.weight, layer.dense_weight(), held_out)
            planned[name] = planned[name].model_copy(update={"measured": measured})
        set_module(session.decoder.model, name, layer)
    used = sum(linear.parameters for linear in planned.values())
    return plan.model_copy(update={"linears": planned, "budget": plan.budget.model_copy(update={"used": used})})


def refine(session: Session, plan: Plan) -> Plan:
    """Run the recipe's refiners, in order, over the factors."""
    ranks = {name: linear.rank for name, linear in plan.linears.items()}
    notes = [note for refiner in plan.recipe.refine for note in refiner.refine(session, ranks)]
    return plan.model_copy(update={"notes": [*plan.notes, *notes]})


def relative(loss: float, whole: float) -> float:
    """The error's share of the output's norm, from their squares."""
    return (loss / max(whole, 1e-300)) ** 0.5


def relative_error(weight: Tensor, approximation: Tensor, grams: Grams) -> float:
    """|L^T (W - W') R|_F / |L^T W R|_F."""
    return (squared_error(weight - approximation, grams) / squared_error(weight, grams)) ** 0.5
