"""Newton: the right factors answer to what the whole compressed model loses, where anchoring saw a linear at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from slimrank.allocate import Ranks
from slimrank.calibrate.backward import States, head_gradient, step_back
from slimrank.calibrate.collect import add_up, watch_inputs
from slimrank.calibrate.moments import Moments
from slimrank.calibrate.stream import Stream, default_batch, final_states
from slimrank.forms.base import Form
from slimrank.metric.grams import times
from slimrank.refine.base import Refiner
from slimrank.refine.damped import factor_, solved
from slimrank.refine.divergences import divergence_from, logits_of, mean_divergences
from slimrank.session import Session
from slimrank.store.pieces import Facts

# K-FAC takes tokens and linears for independent, so that its whole step would be far too long.
LENGTHS = (0.0, *(2.0**-power for power in range(8, 5, -1)))

Steps = dict[str, Tensor]


class Newton(Refiner):
    """Steps V - t D of every right factor at once, in closed form: D = (U^T G U)^-1 (dL/dV) H^-1.

    L is KL(dense || compressed) in nats a token, and its Hessian K-FAC's (arXiv 1503.05671), of the metric's G and of
    H = E[x^ x^T] in the compressed model. t is the one of LENGTHS with the least L on held-out windows, or none.

    steps: how many, each from where the one before ended; windows: how many calibration windows dL/dV is taken on, the
    next ones at every step, round and round, all by default; skip: how many are passed over first; held_out: how many
    held-out windows choose t; damping: of both Grams, relative to their mean diagonals.
    """

    name: Literal["newton"] = "newton"
    whole_model: ClassVar[bool] = False

    steps: Annotated[int, Field(ge=1)] = 1
    windows: Annotated[int, Field(ge=1)] | None = None
    skip: Annotated[int, Field(ge=0)] = 0
    held_out: Annotated[int, Field(ge=1)] = 16
    damping: Annotated[float, Field(gt=0)] = 0.01

    @property
    def work(self) -> float:
        """Measured on blocks of width 2048."""
        return 0.7 * self.steps

    def in_turn(self) -> tuple["Newton", ...]:
        """Its steps."""
        skips = [self.skip + step * (self.windows or 0) for step in range(self.steps)]
        return tuple(self.model_copy(update={"steps": 1, "skip": skip}) for skip in skips)

    def refine(self, session: Session, ranks: Ranks) -> list[str]:
        """Take one step; notes its length and what it brought. Dense linears stay."""
        pieces, stage = session.pieces, session.stages.stage
        facts = session.finished(0) or self._measured(session)
        losses = facts["losses"]
        length = LENGTHS[min(range(len(losses)), key=losses.__getitem__)]
        for index in range(len(session.linears)):
            if session.finished(index) is None:
                with session.decoder.weights.hold(index):
                    self._move(session, index, length)
                session.finish(index, facts)
            pieces.drop(f"{stage}/steps/{index}")
        pieces.drop(f"{stage}/losses")
        return [
            f"Newton: {length:.2g} of K-FAC's step took the held-out divergence from {losses[0]:.4f} to "
            f"{min(losses):.4f} nats a token."
        ]

    def _measured(self, session: Session) -> Facts:
        """The losses of all lengths, kept like the steps until every block has moved."""
        pieces, stage = session.pieces, session.stages.stage
        key = f"{stage}/losses"
        if key not in pieces:
            for index, steps in self._steps(session):
                pieces.save(f"{stage}/steps/{index}", steps)
            pieces.save(key, {}, {"losses": self._losses(session)})
        return pieces.load(key)[1]

    def _steps(self, session: Session) -> Iterator[tuple[int, Steps]]:
        """By block from the last, D of its factors."""
        decoder = session.decoder
        ids = session.windows.calibration.roll(-self.skip, 0)[: self.windows]
        with session.as_dense():
            dense = final_states(decoder, ids)
        states = States(decoder, decoder.world.share(ids))
        with decoder.weights.hold(None):
            gradients = [
                head_gradient(decoder, chunk, ours, partial(divergence_from, dense, batch))
                for batch, (chunk, ours) in enumerate(zip(states.ids, states.last, strict=True))
            ]
        for index in session.track(range(len(decoder) - 1, -1, -1), "correcting", len(decoder)):
            with decoder.weights.hold(index):
                yield index, self._steps_of_block(session, index, states, gradients, ids.numel())

    def _steps_of_block(
        self, session: Session, index: int, states: States, gradients: list[Tensor], tokens: int
    ) -> Steps:
        rights, moments = right_factors(session, index), Moments()
        factors = [right.weight for right in rights.values()]
        with watch_inputs(rights, moments) as inputs, requiring_gradients(factors):
            found = dict(zip(rights, step_back(session.decoder, states, gradients, index, factors), strict=True))
        add_up(session.decoder, moments, inputs, rights)
        session.world.add_up(*found.values())
        steps = {}
        # a Gram at a time, the largest while least else is there
        for leader in sorted(inputs, key=lambda name: -rights[name].in_features):
            inner = factor_(inputs.pop(leader).mean(), self.damping)
            readers = [name for name, first in moments.leader.items() if first == leader]
            for name in readers:
                outer = self._outer_factor(session, name)
                step = newton_step(outer, found.pop(name).div_(tokens), inner)
                steps[name] = step.to(rights[name].weight.dtype)
        return steps

    def _outer_factor(self, session: Session, name: str) -> Tensor:
        """Of U^T G U (r, r), U over all linears that share V; G is the identity where the metric has no left Gram."""
        (group,) = session.units([name])
        return factor_(torch.stack([self._outer(session, member) for member in group]).sum(0), self.damping)

    def _outer(self, session: Session, name: str) -> Tensor:
        layer, gram = session.decoder.model.get_submodule(name), session.metric.left_gram(session.site(name))
        assert isinstance(layer, Form)
        left = layer.left()
        return left.T @ (left if gram is None else times(gram, left).mul_(2))

    def _losses(self, session: Session) -> list[float]:
        """L on the held-out windows at every one of LENGTHS, which go through the blocks side by side."""
        decoder, ids = session.decoder, session.windows.held_out[: self.held_out]
        mine, batch = decoder.world.share(ids), default_batch(decoder, ids.shape[1])
        streams = [Stream(decoder, mine, batch, copies=len(LENGTHS)) for _ in LENGTHS]
        for index in range(len(decoder)):
            with decoder.weights.hold(index):
                self._advance(session, index, streams)
        dense = session.dense_held_out(self.held_out)
        with decoder.weights.hold(None):
            return mean_divergences(dense, [partial(logits_of, stream) for stream in streams])

    def _advance(self, session: Session, index: int, streams: list[Stream]) -> None:
        """Each stream through the block as it is after a step of its own length."""
        rights = right_factors(session, index)
        before = {name: right.weight.detach().clone() for name, right in rights.items()}
        for length, stream in zip(LENGTHS, streams, strict=True):
            self._move(session, index, length)
            stream.skip(1)
            for name, right in rights.items():
                right.weight.data.copy_(before[name])

    def _move(self, session: Session, index: int, length: float) -> None:
        steps = session.pieces.load(f"{session.stages.stage}/steps/{index}")[0]
        for name, right in right_factors(session, index).items():
            right.weight.data.sub_(steps[name].to(right.weight.device), alpha=length)


def newton_step(outer: Tensor, gradient: Tensor, inner: Tensor) -> Tensor:
    """D = (U^T G U)^-1 (dL/dV) H^-1 (r, n), from the lower factors of U^T G U (r, r) and of H (n, n)."""
    return torch.cholesky_solve(solved(gradient, inner), outer)


def right_factors(session: Session, index: int) -> dict[str, nn.Linear]:
    """The right factors of a block's compressed linears, by the linears' names, a shared one by its leader's."""
    modules = {name: session.decoder.model.get_submodule(name) for name in session.linears[index]}
    return {name: module.right for name, module in modules.items() if isinstance(module, Form) and module.leads}


@contextmanager
def requiring_gradients(parameters: list[Tensor]) -> Iterator[None]:
    """The parameters are leaves of the graph inside."""
    flags = [parameter.requires_grad for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    try:
        yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
