"""The curves of a session: measured, kept among the finished pieces, and read back."""

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial

from torch import Tensor

from slimrank.calibrate.shelf import Shelf, forget_input_grams
from slimrank.metric import Grams
from slimrank.run.session import Group, Session
from slimrank.runtime.threads import Job, is_small
from slimrank.spectrum.decomposition import Curve, curve, curve_of, decompose
from slimrank.store.pieces import Pieces


def curve_job(session: Session, group: Group) -> tuple[bool, Job[Curve]]:
    """What finds a group's curve, which mostly is one linear, and whether that is a small problem (see threads)."""
    metric = session.metric
    held_out = metric.held_out_inputs(session.site(group[0]))
    if held_out is not None and held_out.right is not None and _rough(session, group):
        held_out = Grams(right=held_out.right.float())  # before the other Gram takes memory
    weight, grams = session.stack(group)
    small = is_small(weight.shape, weight.device)
    if metric.route == "projector" or len(group) > 1:
        timer = nullcontext if small else partial(session.clock, "measure")
        return small, partial(curve, weight, grams, held_out, metric.route, bases=session.bases, timer=timer)
    return small, partial(_held_curve, session, group[0], weight, grams, held_out)


def _held_curve(session: Session, name: str, weight: Tensor, grams: Grams, held_out: Grams | None) -> Curve:
    """A linear's curve from its whole decomposition, which the session holds from then on where it has room."""
    found = decompose(weight, grams, session.metric.route)
    session.decompositions.hold(name, found)
    return curve_of(weight, found, held_out and Grams(grams.left, held_out.right))


def _rough(session: Session, group: Group) -> bool:
    """Whether the held-out windows are measured in float32 (see Small.left_out)."""
    return session.metric.route == "projector" and not session.bases and not session.tall(group)


def have_curves(pieces: Pieces, groups: Iterable[Group]) -> bool:
    """Whether the curves of all these groups are among the pieces."""
    return all(_key(group) in pieces for group in groups)


def _key(group: Group) -> str:
    return f"curves/{'+'.join(group)}"


def save_curve(session: Session, group: Group, one: Curve) -> None:
    """Keep a group's curve."""
    held = {"values": one.values, "measured": one.measured, "basis": one.basis}
    tensors = {key: tensor.cpu() for key, tensor in held.items() if tensor is not None}
    facts = {"damping": one.damping, "choice": session.choices.get(group[0])}
    session.pieces.save(_key(group), tensors, facts)


def load_curve(session: Session, group: Group) -> None:
    """Let the session know a group's curve."""
    tensors, facts = session.pieces.load(_key(group))
    if facts["choice"] is not None:
        session.choices[group[0]] = facts["choice"]
    session.curves[group] = Curve(tensors["values"], tensors.get("measured"), facts["damping"], tensors.get("basis"))


def let_go(session: Session, index: int) -> None:
    """Drop what a block's curves were the last to need.

    That is the held-out moments, where the form does not search, and the inputs' Grams, where no decomposition will be
    asked for.
    """
    if session.pieces.lasting and not session.form.searches:
        session.pieces.drop(f"held-out/{index}")
        if isinstance(session.held_out.inputs, Shelf):
            session.held_out.inputs.forget(f"held-out/{index}")
    if session.pieces.lasting and not session.bases:
        forget_input_grams(session.pieces, f"inputs/{index}")
