"""The curves of a session: measured, kept among the finished pieces, and read back."""

from collections.abc import Iterable
from functools import partial

from torch import Tensor

from slimrank.calibrate.shelf import Shelf, forget_input_grams
from slimrank.metric import Grams
from slimrank.session import Session
from slimrank.spectrum import Curve, curve, curve_of, decompose
from slimrank.store.pieces import Pieces


def measured_curve(session: Session, name: str) -> Curve:
    """One linear's curve."""
    site, metric = session.site(name), session.metric
    held_out = metric.held_out_inputs(site)
    if held_out is not None and held_out.right is not None and _rough(session, site.weight):
        held_out = Grams(right=held_out.right.float())  # before the other Gram takes memory
    grams = metric.grams(site)
    if metric.route == "projector" or session.pieces.lasting:
        timer = partial(session.clock, "measure")
        return curve(site.weight, grams, held_out, metric.route, bases=session.bases, timer=timer)
    session.decompositions[name] = decompose(site.weight, grams, metric.route)
    measured = held_out and Grams(grams.left, held_out.right)
    return curve_of(site.weight, session.decompositions[name], measured)


def _rough(session: Session, weight: Tensor) -> bool:
    """Whether the held-out windows are measured in float32 (see Small.left_out)."""
    return session.metric.route == "projector" and not session.bases and weight.shape[0] <= weight.shape[1]


def have_curves(pieces: Pieces, names: Iterable[str]) -> bool:
    """Whether the curves of all these linears are among the pieces."""
    return all(f"curves/{name}" in pieces for name in names)


def save_curve(session: Session, name: str, one: Curve) -> None:
    """Keep a linear's curve."""
    held = {"values": one.values, "measured": one.measured, "basis": one.basis}
    tensors = {key: tensor.cpu() for key, tensor in held.items() if tensor is not None}
    facts = {"damping": one.damping, "choice": session.choices.get(name)}
    session.pieces.save(f"curves/{name}", tensors, facts)


def load_curve(session: Session, name: str) -> None:
    """Let the session know a linear's curve."""
    tensors, facts = session.pieces.load(f"curves/{name}")
    if facts["choice"] is not None:
        session.choices[name] = facts["choice"]
    session.curves[name] = Curve(tensors["values"], tensors.get("measured"), facts["damping"], tensors.get("basis"))


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
