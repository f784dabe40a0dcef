"""Whitened coordinates: a factor is trained where its inputs, and the loss's gradients at its outputs, are white."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slimrank.calibrate.collect import Linears, each_block, merged
from slimrank.calibrate.gradients import collect_gradients
from slimrank.calibrate.moments import Moments
from slimrank.forms.base import Form
from slimrank.linear import weight_of
from slimrank.refine.damped import factor_
from slimrank.session import Session


class Whitened(nn.Module):
    """W = B^-T W~ A^-1 (m, n), with A A^T = E[x x^T] and B B^T = E[g g^T], both damped and of mean diagonal 1.

    A step of W~ moves every direction of the inputs, and of the outputs as far as the loss cares, alike: descent on it
    is descent on W preconditioned by K-FAC (arXiv 1503.05671).
    """

    outside: Tensor
    inside: Tensor

    def __init__(self, outputs: Tensor, inputs: Tensor, dtype: torch.dtype, damping: float) -> None:
        """outputs: the Gram of g (m, m), inputs: that of x (n, n), in float64 and overwritten."""
        super().__init__()
        self.register_buffer("outside", inverse_root_(outputs, damping).to(dtype))
        self.register_buffer("inside", inverse_root_(inputs, damping).to(dtype))

    def forward(self, coordinates: Tensor) -> Tensor:
        """W of W~."""
        return self.outside.T @ coordinates @ self.inside

    def right_inverse(self, weight: Tensor) -> Tensor:
        """W~ of W."""
        left = torch.linalg.solve_triangular(self.outside.double().T, weight.double(), upper=True)
        found = torch.linalg.solve_triangular(self.inside.double(), left, upper=False, left=False)
        return found.to(weight.dtype)


def inverse_root_(gram: Tensor, damping: float) -> Tensor:
    """L^-1 (n, n), lower, for L L^T = the Gram plus damping times its mean diagonal, over its mean diagonal then."""
    root = factor_(gram, damping)
    root.div_(root.square().sum().div(len(root)).sqrt())
    return torch.linalg.solve_triangular(root, torch.eye(len(root), dtype=root.dtype, device=root.device), upper=False)


@contextmanager
def whitened(session: Session, windows: int, damping: float = 0.1) -> Iterator[None]:
    """Inside, the parameters of the compressed linears' factors are their W~, by so many calibration windows.

    Those that no token reached stay as they are, and all do without windows.
    """
    linears = factors(session) if windows else []
    moments = moments_of(session, linears, windows)
    with ExitStack() as stack:
        for name, linear in ((name, linear) for block in linears for name, linear in block.items()):
            if name in moments.leader and name in moments.outputs:
                outputs, inputs = moments.outputs[name].gram, moments.input_of(name).gram
                made = Whitened(outputs, inputs, weight_of(linear).dtype, damping)
                parametrize.register_parametrization(linear, "weight", made)
                stack.callback(parametrize.remove_parametrizations, linear, "weight")
        yield


def factors(session: Session) -> Linears:
    """The linears inside the model's forms, by block and name."""
    model = session.decoder.model
    forms = [{name: model.get_submodule(name) for name in block} for block in session.linears]
    return [
        {
            f"{name}.{child}": linear
            for name, form in block.items()
            if isinstance(form, Form)
            for child, linear in form.named_children()
            if isinstance(linear, nn.Linear)
        }
        for block in forms
    ]


def moments_of(session: Session, linears: Linears, windows: int) -> Moments:
    """What reaches the linears from both sides, for labels sampled from the compressed model."""
    decoder, ids, seed = session.decoder, session.windows.calibration[:windows], session.windows.record["seed"]
    moments = merged(one for _, one in each_block(decoder, ids, linears, blocks=False, track=session.track))
    collect_gradients(
        decoder, ids, linears, moments, labels="sampled", seed=seed, of_weights=False, track=session.track
    )  # fmt: skip
    return moments
