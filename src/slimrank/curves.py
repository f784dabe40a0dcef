"""The curves of a session: measured, kept among the finished pieces, and read back."""

from dataclasses import replace

from torch import Tensor

from slimrank.calibrate.shelf import Shelf, forget_input_grams
from slimrank.metric import Grams
from slimrank.session import Session
from slimrank.spectrum import Curve, curve, curve_of, decompose


def measured_curve(session: Session, name: str) -> Curve:
    """One linear's curve."""
    site, metric = session.site(name), session.metric
    held_out, grams = metric.held_out_inputs(site), metric.grams(site)
    if metric.route == "projector" or session.pieces.lasting:
        found = curve(site.weight, grams, held_out, metric.route)
        return found if session.bases else replace(found, basis=None)
    session.decompositions[name] = decompose(site.weight, grams, metric.route)
    measured = held_out and Grams(grams.left, held_out.right)
    return curve_of(site.weight, session.decompositions[name], measured)


def save_curves(session: Session, index: int, found: dict[str, Curve]) -> None:
    """Keep a block's curves."""
    tensors: dict[str, Tensor] = {}
    for name, one in found.items():
        held = {"values": one.values, "measured": one.measured, "basis": one.basis}
        tensors |= {f"{name}/{key}": tensor.cpu() for key, tensor in held.items() if tensor is not None}
    facts = {
        "damping": {name: one.damping for name, one in found.items()},
        "choices": {name: session.choices[name] for name in found if name in session.choices},
    }
    session.pieces.save(f"curves/{index}", tensors, facts)


def load_curves(session: Session, index: int) -> None:
    """Let the session know a block's curves.

    The held-out moments are then done with, where the form does not search, and the inputs' Grams, where no
    decomposition will be asked for.
    """
    tensors, facts = session.pieces.load(f"curves/{index}")
    session.choices |= facts["choices"]
    for name, damping in facts["damping"].items():
        values, measured, basis = (tensors.get(f"{name}/{key}") for key in ("values", "measured", "basis"))
        if values is not None:
            session.curves[name] = Curve(values, measured, damping, basis)
    if session.pieces.lasting and not session.form.searches:
        session.pieces.drop(f"held-out/{index}")
        if isinstance(session.held_out.inputs, Shelf):
            session.held_out.inputs.forget(f"held-out/{index}")
    if session.pieces.lasting and not session.bases:
        forget_input_grams(session.pieces, f"inputs/{index}")
