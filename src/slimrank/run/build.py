"""From a block's plans to its factors."""

from typing import Any

from torch import Tensor

from slimrank.errors import UsageError
from slimrank.forms import FORMS
from slimrank.metric import Grams
from slimrank.model.decoder import set_module
from slimrank.numerics.grams import squared_error
from slimrank.plan import LinearPlan, Plan
from slimrank.run.session import Group, Session
from slimrank.spectrum.decomposition import LinearSpectrum
from slimrank.store.pieces import Facts


def joint_groups(session: Session, plan: Plan) -> tuple[Group, ...]:
    """The groups that the plan factorises as one; a UsageError if one does not share an input."""
    groups, planned = {group[0]: group for group in session.groups}, plan.joint()
    for leader, names in planned.items():
        if set(groups.get(leader, ())) != set(names):
            raise UsageError(
                f"The plan joins {', '.join(names)}, which can't share their pivots: set their joint to null."
            )
    return tuple(group for leader, group in groups.items() if leader in planned)


def factorize_block(session: Session, chosen: dict[str, LinearPlan], index: int) -> Facts:
    """Put the factors of a block's chosen linears in their places; returns the linears' plans."""
    units = session.units(name for name in session.linears[index] if name in chosen)
    made = [
        built(session, unit[0], chosen) if len(unit) == 1 else built_together(session, unit, chosen) for unit in units
    ]
    facts = {"linears": {name: one.model_dump(mode="json") for found in made for name, one in found.items()}}
    session.finish(index, facts)
    return facts


def measured(session: Session, name: str, planned: LinearPlan) -> LinearPlan:
    """The linear's plan with what the curve says of its rank, which a person may have changed."""
    (group,) = session.units([name])
    shares, rank, losses = session.curves[group].measured, planned.rank or 0, losses_of(session, group)
    return planned.model_copy(
        update={
            "loss": losses[rank].item() if name == group[0] else 0.0,
            "relative": relative(losses[rank].item(), losses[0].item()),
            "measured": None if shares is None else shares[rank].item(),
        }
    )


def losses_of(session: Session, group: Group) -> Tensor:
    """The group's loss at every rank, as its curve has it."""
    return LinearSpectrum(session.curves[group].values, session.shape(group), 0, "").losses()


def built(session: Session, name: str, chosen: dict[str, LinearPlan]) -> dict[str, LinearPlan]:
    """Put a linear's factors in its place; returns its plan with what was built and measured."""
    plan = chosen[name]
    rank, losses = plan.rank or 0, losses_of(session, (name,))
    with session.decoder.weights.hold(plan.block):
        target = session.target(name, None if session.form.searches else rank)
        layer = session.form.build(target, rank)
        loss, entry = session.form.loss(target, rank), layer.entry()
        update = {"form": layer.form, "layer": entry, "loss": loss, "relative": relative(loss, losses[0].item())}
        update["parameters"] = layer.count_parameters(*plan.shape, entry)
        held_out = session.metric.held_out_grams(session.site(name)) if session.form.searches else None
        if held_out is not None:
            update["measured"] = relative_error(target.weight, layer.dense_weight(), held_out)
    set_module(session.decoder.model, name, layer)
    return {name: plan.model_copy(update=update)}


def built_together(session: Session, group: Group, chosen: dict[str, LinearPlan]) -> dict[str, LinearPlan]:
    """Put a group's factors in the places of its linears; returns their plans with what was built."""
    rank, dense = chosen[group[0]].rank or 0, [session.dense[name] for name in group]
    with session.decoder.weights.hold(chosen[group[0]].block):
        layers = session.form.build_joint(dense, session.decomposed(group, rank), rank, group[0].rpartition(".")[2])
    for name, layer in zip(group, layers, strict=True):
        set_module(session.decoder.model, name, layer)
    return {name: with_entry(chosen[name], layer.entry()) for name, layer in zip(group, layers, strict=True)}


def with_entry(linear: LinearPlan, entry: dict[str, Any] | None) -> LinearPlan:
    """The plan of a linear that has become the layer of this entry."""
    if entry is None:
        return linear
    parameters = FORMS[entry["form"]].count_parameters(*linear.shape, entry)
    return linear.model_copy(update={"form": entry["form"], "layer": entry, "parameters": parameters})


def relative(loss: float, whole: float) -> float:
    """The error's share of the output's norm, from their squares."""
    return (loss / max(whole, 1e-300)) ** 0.5


def relative_error(weight: Tensor, approximation: Tensor, grams: Grams) -> float:
    """|L^T (W - W') R|_F / |L^T W R|_F."""
    return relative(squared_error(weight - approximation, grams), squared_error(weight, grams))
