"""The factorise step: builds the layers of a plan in place of the dense linears."""

from collections.abc import Mapping

from slimrank.errors import UsageError
from slimrank.factorize import Factorizer
from slimrank.factorize.base import Built, Target
from slimrank.factorize.shared import SharedFactorizer
from slimrank.model.modules import set_module
from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams, squared_error
from slimrank.plan import LinearPlan, Plan
from slimrank.refine.base import Cuts
from slimrank.refine.ends import end_grid
from slimrank.spectrum.curve import share
from slimrank.spectrum.shared import factors
from slimrank.spectrum.spectra import Spectra
from slimrank.store.pieces import Facts
from slimrank.store.run import Run
from slimrank.store.stages import Stages


def cuts_of(plan: Plan, spectra: Spectra) -> Cuts:
    """The factorised units of a plan and their ranks.

    Raises:
        UsageError: if a planned unit's linears do not share an input, or no calibration token reached a linear.
    """
    known = {unit.leader: unit for unit in spectra.stacks}
    ranks: dict[Unit, int] = {}
    for unit, rank in plan.ranks().items():
        if rank is None:
            continue
        own = spectra.model.units[unit.leader] if len(unit.names) == 1 else known.get(unit.leader)
        if own is None or set(own.names) != set(unit.names):
            raise UsageError(
                f"The plan makes {', '.join(unit.names)} one unit, but these are not the linears that share an input: "
                "set unit to null."
            )
        if len(unit.names) == 1 and own not in spectra.curves:
            raise UsageError(
                f"The plan gives {unit.leader} rank {rank}, but no calibration token reached it: set its rank to null, "
                "or calibrate on more text."
            )
        ranks[own] = rank
    grids = {spectra.model.units[name]: grid for name, grid in plan.grids().items()}
    ends = {name: end_grid(bits) for name, bits in plan.ends.items()}
    return Cuts(plan.recipe.form, ranks, grids, ends)


def build(spectra: Spectra, plan: Plan, cuts: Cuts, stages: Stages, run: Run) -> Plan:
    """Replace the linears of all units by their layers; returns the plan with the built layers and their errors."""
    run = run.at(stages.at("factorise"))
    planned, blocks = predicted(spectra, plan, cuts), range(len(spectra.model.blocks))
    world, built = spectra.model.decoder.world, dict[int, Facts | None]()
    with world.apart():
        mine = world.dealt(blocks, [sum(unit.work for unit in cuts.of_block(index)) for index in blocks])
        for index in run.track(mine, "factorising", len(mine)):
            built[index] = run.finished(index) or build_block(spectra, planned, cuts, index, run)
    linears = dict(planned)
    for index in blocks:
        facts = built[index] if index in built else run.finished(index)
        assert facts is not None, "another process has finished the block"
        linears |= {name: LinearPlan.model_validate(linear) for name, linear in facts["linears"].items()}
    return plan.with_linears(linears)


def predicted(spectra: Spectra, plan: Plan, cuts: Cuts) -> dict[str, LinearPlan]:
    """The linears' plans with the losses of their ranks read from the curves, since a plan may be edited."""
    linears = dict(plan.linears)
    for unit, rank in cuts.ranks.items():
        curve = spectra.curve(unit)
        measured = None if curve.measured is None else curve.measured[rank].item()
        for name in unit.names:
            update = {"relative": curve.relative(rank), "measured": measured}
            grid = linears[name].grid
            if grid is not None and grid not in curve.prices:
                continue  # the loss that the plan was made with
            loss = curve.stored(rank, grid) if name == unit.leader else 0.0
            linears[name] = linears[name].model_copy(update=update | {"loss": loss})
    return linears


def build_block(spectra: Spectra, planned: dict[str, LinearPlan], cuts: Cuts, index: int, run: Run) -> Facts:
    """Replace a block's linears by their layers; returns {"linears": their plans}."""
    linears: dict[str, LinearPlan] = {}
    for unit in cuts.of_block(index):
        linears |= build_unit(spectra, planned, cuts.form, unit, cuts.ranks[unit])
    facts = {"linears": {name: linear.model_dump(mode="json") for name, linear in linears.items()}}
    run.finish(index, facts)
    return facts


def build_unit(
    spectra: Spectra, planned: Mapping[str, LinearPlan], form: Factorizer, unit: Unit, rank: int
) -> dict[str, LinearPlan]:
    """Replace a unit's linears by their layers; returns their plans with the built layers and their errors."""
    curve, decoder = spectra.curve(unit), spectra.model.decoder
    with decoder.weights.hold(unit.block):
        if unit.shared:
            built = shared_built(spectra, unit, rank)
        else:
            target = target_of(spectra, unit, None if form.searches else rank)
            built = form.built(target, rank)
        update = {"relative": share(built.loss, curve.losses()[0].item())}
        if form.searches and not unit.shared:
            update |= held_out_error(spectra, unit, target, built)
    plans = {}
    for name, layer in zip(unit.names, built.layers, strict=True):
        set_module(decoder.model, name, layer)
        loss = built.loss if name == unit.leader else 0.0
        plans[name] = planned[name].model_copy(update=update | {"loss": loss}).built(layer.entry())
    return plans


def shared_built(spectra: Spectra, unit: Unit, rank: int) -> Built:
    """The layers of all experts that share a factor."""
    assert unit.shared, "a unit of all experts"
    form, linears = SharedFactorizer(side=unit.shared), spectra.model.linears
    layers = [
        form.layer(own, linears[name], None if name == unit.leader else unit.local)
        for name, own in factors(spectra, unit, rank)
    ]
    form.form.link_members(unit.leader, layers)
    return Built(layers, spectra.curve(unit).loss(rank))


def target_of(spectra: Spectra, unit: Unit, rank: int | None = None) -> Target:
    """The factorizer's target of a unit; rank: the largest it is truncated to, all by default."""
    dense, choice = [spectra.model.linears[name] for name in unit.names], spectra.curve(unit).choice
    return Target(
        dense,
        spectra.weight(unit),
        spectra.grams(unit, choice),
        spectra.decomposition(unit, rank),
        unit.leader.rpartition(".")[2],
    )


def held_out_error(spectra: Spectra, unit: Unit, target: Target, built: Built) -> dict[str, float]:
    """{"measured": |error| / |output| on the held-out windows}, empty if no held-out token reached the unit."""
    held_out = spectra.held_out_grams(unit, spectra.curve(unit).choice)
    if held_out is None:
        return {}
    grams = Grams(target.grams.left, held_out.right)
    error = target.weight - built.layers[0].dense_weight()
    return {"measured": share(squared_error(error, grams), squared_error(target.weight, grams))}
