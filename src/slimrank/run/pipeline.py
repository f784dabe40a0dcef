"""The steps of the pipeline, each a function from one plain value to the next."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial

from torch import Tensor, nn

from slimrank.allocate import Problem, Ranks
from slimrank.allocate.budget import cost, joint_costs
from slimrank.calibrate import Moments, Windows
from slimrank.calibrate.collect import each_block
from slimrank.calibrate.gradients import Labels, each_gradient
from slimrank.calibrate.shelf import on_shelves, shelve, take_up
from slimrank.forms import Joint, compressed_layers
from slimrank.model.decoder import Decoder
from slimrank.plan import Budget, LinearPlan, Plan, fingerprint
from slimrank.recipe import Recipe
from slimrank.refine import Refiner
from slimrank.run.build import factorize_block, joint_groups, measured, relative, with_entry
from slimrank.run.session import Group, Session
from slimrank.runtime.threads import in_threads
from slimrank.runtime.track import Track, no_track
from slimrank.spectrum.curves import curve_job, have_curves, let_go, load_curve, save_curve
from slimrank.store.pieces import Facts, MemoryPieces, Pieces

Walk = Callable[..., Iterator[tuple[int, Moments]]]


def calibrate(
    decoder: Decoder,
    windows: Windows,
    linears: list[dict[str, nn.Module]],
    *,
    labels: Labels | None = None,
    gradients_on: Tensor | None = None,
    of_weights: bool = True,
    pieces: Pieces | None = None,
    track: Track = no_track,
) -> tuple[Moments, Moments]:
    """Texts -> Moments, of the calibration windows and of the held-out ones, block by block into `pieces`.

    With `labels`, of gradients too, on the windows `gradients_on`, by default the calibration ones; of_weights: also of
    those of the weights themselves.
    """
    pieces = MemoryPieces() if pieces is None else pieces
    moments, held_out = (on_shelves(pieces, decoder.device) for _ in range(2))

    def into(shelves: Moments, group: str, walk: Walk, ids: Tensor, spent: Sequence[int] = ()) -> None:
        there = [index for index in range(len(linears)) if f"{group}/{index}" in pieces]
        for index, found in walk(decoder, ids, linears, done={*there, *spent}, track=track):
            shelve(found, pieces, f"{group}/{index}")
        for index in range(len(linears)):
            if f"{group}/{index}" in pieces:
                take_up(shelves, pieces, f"{group}/{index}")

    if labels:
        walk = partial(each_gradient, labels=labels, seed=windows.record["seed"], of_weights=of_weights)
        into(moments, "gradients", walk, windows.calibration if gradients_on is None else gradients_on)
    into(moments, "inputs", each_block, windows.calibration)
    spent = [index for index, block in enumerate(linears) if have_curves(pieces, singly(block))]
    into(held_out, "held-out", partial(each_block, blocks=False), windows.held_out, spent)
    return moments, held_out


def decompose_all(session: Session) -> None:
    """Moments -> what every rank costs, for every linear and group that may be joined, dealt out to the processes."""
    blocks = [singly(block) for block in session.linears]
    for group in session.groups:
        blocks[session.block_of(group)].append(group)
    groups = [group for block in blocks for group in block]
    missing = [group for group in groups if not have_curves(session.pieces, [group])]
    with session.world.apart():
        mine, done = session.world.dealt(missing, [session.work(group) for group in missing]), set[Group]()
        found = in_threads(curve_job(session, group) for group in mine)
        for group, one in zip(session.track(mine, "decomposing", len(mine)), found, strict=True):
            save_curve(session, group, one)
            done.add(group)
            index = session.block_of(group)
            if done.issuperset(blocks[index]):
                let_go(session, index)
    for group in groups:
        load_curve(session, group)
    for index in range(len(session.linears)):
        let_go(session, index)


def singly(names: Iterable[str]) -> list[Group]:
    """Each a group of its own."""
    return [(name,) for name in names]


def make_plan(session: Session, recipe: Recipe) -> Plan:
    """Spectrum -> Plan."""
    problem = Problem(session.keep, session.spectrum(), session.form, session, session.joint_spectra())
    weights = session.decoder.weights
    with weights.whole() if recipe.allocate.whole_model else nullcontext():
        allocation = recipe.allocate.allocate(problem)
    searched = searched_losses(session, allocation.ranks) if recipe.form.searches else {}
    joint = {name: group for group in allocation.joint for name in group}
    linears = {
        name: planned(problem, joint.get(name, (name,)), name, allocation.ranks[name], searched.get(name))
        for name in problem.spectrum.linears
    }
    used = sum(linear.parameters for linear in linears.values())
    return Plan(
        keep=problem.keep,
        model=fingerprint(session.decoder),
        calibration=session.windows.record,
        recipe=recipe,
        budget=Budget(dense=problem.dense, allowed=problem.budget, used=used),
        notes=[*allocation.notes, *warnings(session)],
        linears=linears,
    )


def planned(problem: Problem, group: Group, name: str, rank: int | None, searched: float | None) -> LinearPlan:
    """The plan of a linear of this group at its rank; searched: the loss there, where the form looks for it."""
    spectrum, joint = problem.spectrum.linears[name], len(group) > 1
    losses = (problem.joint[group] if joint else spectrum).losses()
    loss = 0.0 if rank is None else losses[rank].item() if searched is None else searched
    return LinearPlan(
        block=spectrum.block,
        role=spectrum.role,
        form="dense" if rank is None else Joint.form if joint else problem.form.name,
        rank=rank,
        joint=group[0] if joint else None,
        shape=spectrum.shape,
        parameters=joint_costs(problem, group, rank)[group.index(name)]
        if joint and rank
        else cost(problem, name, rank),
        loss=loss if name == group[0] else 0.0,
        relative=relative(loss, losses[0].item()),
    )


def searched_losses(session: Session, ranks: Ranks) -> dict[str, float]:
    """The losses that the form finds by search, dealt out to the processes; what it found is kept for the build."""
    names = [name for name, rank in ranks.items() if rank is not None]
    with session.world.apart():
        mine = session.world.dealt(names, [session.work((name,)) for name in names])
        losses = {name: session.form.loss(session.target(name), ranks[name] or 0) for name in mine}
    session.found |= session.world.gathered({name: session.found[name] for name in mine})
    return session.world.gathered(losses)


def warnings(session: Session) -> list[str]:
    """What the user should know of the calibration, a sentence each."""
    short = session.moments.short_of_tokens()
    damped = [name for name in session.dense if session.curves[name,].damping]
    outside = session.decoder.outside_linears()
    notes = []
    if outside:
        notes.append(
            f"{sum(outside.values()):,} parameters are in no linear (fused?) and stay dense: {', '.join(outside)}."
        )
    if short:
        notes.append(f"Fewer calibration tokens than input channels at {session.told(short)}: use more --samples.")
    if damped:
        worst = max(session.curves[name,].damping for name in damped)
        notes.append(f"The Gram needed damping, at most {worst:.0e} of its mean diagonal, at {session.told(damped)}.")
    if session.choices:
        counts = Counter(session.choices.values()).most_common()
        chosen = ", ".join(f"{value:.3g} for {count}" for value, count in counts)
        notes.append(f"The metric's own choice on held-out windows was {chosen} of {len(session.choices)} linears.")
    return notes


def factorize(session: Session, plan: Plan, *, build: bool = True) -> Plan:
    """Plan -> Factors, put in the place of the dense linears; returns the plan with what was built and measured.

    build: False where the first refiner builds every factor itself (see `rebuilt`), and only the measures are wanted.
    """
    session.stages.forget_unfinished([stage for stage, refiner in stages(plan) if refiner.whole_model])
    session.stages.begin("factorise", later=[stage for stage, _ in stages(plan)])
    session.joint = joint_groups(session, plan)
    chosen = {name: measured(session, name, linear) for name, linear in plan.linears.items() if linear.rank is not None}
    if not build:
        return accounted(plan, plan.linears | chosen)
    blocks, made = range(len(session.linears)), dict[int, Facts | None]()
    with session.world.apart():
        costs = [sum(map(session.work, session.units(block))) for block in session.linears]
        mine = session.world.dealt(blocks, costs)
        for index in session.track(mine, "factorising", len(mine)):
            made[index] = session.finished(index) or factorize_block(session, chosen, index)
    planned = dict(plan.linears)
    for index in blocks:
        facts = made[index] if index in made else session.finished(index)
        assert facts is not None, "the process that the block was dealt to has finished it"
        planned |= {name: LinearPlan.model_validate(linear) for name, linear in facts["linears"].items()}
    return accounted(plan, planned)


def refine(session: Session, plan: Plan) -> Plan:
    """Run the recipe's refiners, in order, over the factors."""
    ranks = {name: linear.rank for name, linear in plan.linears.items()}
    notes: list[str] = []
    names = [stage for stage, _ in stages(plan)]
    for number, (stage, refiner) in enumerate(stages(plan)):
        session.stages.begin(stage, later=names[number + 1 :])
        if refiner.whole_model:
            facts = session.stages.finished_whole()
            if facts is None:
                with session.decoder.weights.whole():
                    facts = {"notes": refiner.refine(session, ranks)}
                    session.stages.finish_whole(facts)
            notes += facts["notes"]
        else:
            notes += refiner.refine(session, ranks)
    entries = compressed_layers(session.decoder.model)
    planned = {name: with_entry(linear, entries.get(name)) for name, linear in plan.linears.items()}
    return accounted(plan.model_copy(update={"notes": [*plan.notes, *notes]}), planned)


def stages(plan: Plan) -> list[tuple[str, Refiner]]:
    """The refiners with the names under which their results are kept."""
    return [(f"refine-{number}", refiner) for number, refiner in enumerate(plan.recipe.refine)]


def rebuilt(recipe: Recipe) -> bool:
    """Whether the first refiner builds all factors itself, so that the plain ones need not be built."""
    return bool(recipe.refine) and recipe.refine[0].rebuilds and not recipe.form.searches


def accounted(plan: Plan, linears: dict[str, LinearPlan]) -> Plan:
    """The plan with these linears and what they use."""
    used = sum(linear.parameters for linear in linears.values())
    return plan.model_copy(update={"linears": linears, "budget": plan.budget.model_copy(update={"used": used})})
