"""From a plan to factors in the places of the linears."""

from collections.abc import Mapping

from slimrank.errors import UsageError
from slimrank.factorize import Factorizer
from slimrank.factorize.base import Built, Target
from slimrank.model.decoder import set_module
from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams, squared_error
from slimrank.plan import LinearPlan, Plan
from slimrank.refine.base import Cuts
from slimrank.spectrum.curve import share
from slimrank.spectrum.spectra import Spectra
from slimrank.store.pieces import Facts
from slimrank.store.run import Run
from slimrank.store.stages import Stages


def cuts_of(plan: Plan, spectra: Spectra) -> Cuts:
    """The units that become factors, as the spectra know them, and their ranks.

    Raises:
        UsageError: if linears are to become one factorisation that do not share an input, or one was not reached.
    """
    known = {unit.leader: unit for unit in spectra.stacks}
    ranks: dict[Unit, int] = {}
    for unit, rank in plan.ranks().items():
        if rank is None:
            continue
        own = spectra.model.units[unit.leader] if len(unit.names) == 1 else known.get(unit.leader)
        if own is None or set(own.names) != set(unit.names):
            raise UsageError(
                f"The plan makes {', '.join(unit.names)} one unit, which are not the linears that share one input: set "
                "unit to null."
            )
        if len(unit.names) == 1 and own not in spectra.curves:
            raise UsageError(
                f"The plan gives {unit.leader} rank {rank}, and no calibration token reached it: set its rank to null, "
                "or calibrate on more text."
            )
        ranks[own] = rank
    return Cuts(plan.recipe.form, ranks)


def build(spectra: Spectra, plan: Plan, cuts: Cuts, stages: Stages, run: Run) -> Plan:
    """Put the factors of all units in their places; returns the plan with what was built and measured."""
    run = run.at(stages.at("factorise"))
    planned, blocks = predicted(spectra, plan, cuts), range(len(spectra.model.blocks))
    world, made = spectra.model.decoder.world, dict[int, Facts | None]()
    with world.apart():
        mine = world.dealt(blocks, [sum(unit.work for unit in cuts.of_block(index)) for index in blocks])
        for index in run.track(mine, "factorising", len(mine)):
            made[index] = run.finished(index) or build_block(spectra, planned, cuts, index, run)
    linears = dict(planned)
    for index in blocks:
        facts = made[index] if index in made else run.finished(index)
        assert facts is not None, "the process that the block was dealt to has finished it"
        linears |= {name: LinearPlan.model_validate(linear) for name, linear in facts["linears"].items()}
    return plan.with_linears(linears)


def predicted(spectra: Spectra, plan: Plan, cuts: Cuts) -> dict[str, LinearPlan]:
    """The linears' plans with what the curves say of their ranks, which a person may have changed."""
    linears = dict(plan.linears)
    for unit, rank in cuts.ranks.items():
        curve = spectra.curve(unit)
        measured = None if curve.measured is None else curve.measured[rank].item()
        for name in unit.names:
            update = {"relative": curve.relative(rank), "measured": measured}
            loss = curve.loss(rank) if name == unit.leader else 0.0
            linears[name] = linears[name].model_copy(update=update | {"loss": loss})
    return linears


def build_block(spectra: Spectra, planned: dict[str, LinearPlan], cuts: Cuts, index: int, run: Run) -> Facts:
    """Put the factors of a block's units in their places; returns the linears' plans."""
    linears: dict[str, LinearPlan] = {}
    for unit in cuts.of_block(index):
        linears |= build_unit(spectra, planned, cuts.form, unit, cuts.ranks[unit])
    facts = {"linears": {name: one.model_dump(mode="json") for name, one in linears.items()}}
    run.finish(index, facts)
    return facts


def build_unit(
    spectra: Spectra, planned: Mapping[str, LinearPlan], form: Factorizer, unit: Unit, rank: int
) -> dict[str, LinearPlan]:
    """Put a unit's factors in the places of its linears; returns their plans with what was built and measured."""
    curve, decoder = spectra.curve(unit), spectra.model.decoder
    with decoder.weights.hold(unit.block):
        target = target_of(spectra, unit, None if form.searches else rank)
        built = form.build(target, rank)
        update = {"relative": share(built.loss, curve.losses()[0].item())}
        if form.searches:
            update |= held_out_error(spectra, unit, target, built)
    made = {}
    for name, layer in zip(unit.names, built.layers, strict=True):
        set_module(decoder.model, name, layer)
        loss = built.loss if name == unit.leader else 0.0
        made[name] = planned[name].model_copy(update=update | {"loss": loss}).built(layer.entry())
    return made


def target_of(spectra: Spectra, unit: Unit, rank: int | None = None) -> Target:
    """A unit as a factorizer sees it; rank: the largest it will be cut to, all by default."""
    dense, choice = [spectra.model.linears[name] for name in unit.names], spectra.curve(unit).choice
    return Target(
        dense,
        spectra.weight(unit),
        spectra.grams(unit, choice),
        spectra.decomposition(unit, rank),
        unit.leader.rpartition(".")[2],
    )


def held_out_error(spectra: Spectra, unit: Unit, target: Target, built: Built) -> dict[str, float]:
    """The error's share of the output's norm on the held-out windows, where there are any."""
    held_out = spectra.held_out_grams(unit, spectra.curve(unit).choice)
    if held_out is None:
        return {}
    grams = Grams(target.grams.left, held_out.right)
    error = target.weight - built.layers[0].dense_weight()
    return {"measured": share(squared_error(error, grams), squared_error(target.weight, grams))}
