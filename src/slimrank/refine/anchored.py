"""Anchored sequential targets: each linear is fitted to what the dense model does, on the inputs it will really get."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.allocate import Ranks
from slimrank.calibrate import Moments, OutputMoments, collect_gradients
from slimrank.calibrate.pairs import PairMoments
from slimrank.calibrate.shelf import on_shelves, shelve, take_up
from slimrank.factorize import Target
from slimrank.forms import Form, link
from slimrank.linear import weight_of
from slimrank.metric import Grams
from slimrank.model import set_module
from slimrank.refine.base import Refiner
from slimrank.refine.damped import factor_, solved
from slimrank.refine.factors import dealt_layers
from slimrank.refine.pair import Pair
from slimrank.session import Group, Session
from slimrank.spectrum import decompose
from slimrank.threads import Job

Outputs = Mapping[str, OutputMoments]
Share = Annotated[float, Field(ge=0, le=1)]


class Anchored(Refiner):
    """Builds the factors again, blocks in order and inside a block in the order of the inputs.

    With x^ the input that follows from the linears compressed so far and t the dense model's output, the target is
    T = ((1 - mix) W E[x^ x^T] + mix E[t x^T]) E[x^ x^T]^-1, cut in the metric's left Gram and E[x^ x^T].

    mix: a share, or several of which each input's linears take the one with the least block error on held-out windows.
    residual: let t also make up for what the residual stream lost before it. damping: of the correction's
    E[x^ x^T], relative to its mean diagonal, tenfold as often as rounding left that indefinite. windows: how many
    calibration windows are used, all by default. gradients_again: on how many of them the metric's gradients are first
    taken anew, of the model as compressed so far; worth it after an earlier pass.
    """

    name: Literal["anchored"] = "anchored"
    whole_model: ClassVar[bool] = False

    mix: Share | tuple[Share, ...] = 0.75
    residual: bool = True
    damping: Annotated[float, Field(gt=0)] = 0.1
    windows: Annotated[int, Field(ge=1)] | None = None
    gradients_again: Annotated[int, Field(ge=0)] = 0

    @property
    def work(self) -> float:
        """One decomposition for every mix."""
        return float(len(self.mix)) if isinstance(self.mix, tuple) else 1.0

    @property
    def rebuilds(self) -> bool:
        """Not where a block's error, which depends on the linears not yet fitted, or new gradients are asked for."""
        return not isinstance(self.mix, tuple) and not self.gradients_again

    def refine(self, session: Session, ranks: Ranks) -> list[str]:
        """The linears that are planned to be dense stay as they are."""
        ids = session.windows.calibration[: self.windows]
        pairs = [Pair(session, ids)]
        if isinstance(self.mix, tuple):
            pairs.append(Pair(session, session.windows.held_out))
        chosen: list[float] = []
        for index in session.track(range(len(session.linears)), "anchoring", len(session.linears)):
            facts = session.finished(index)
            if facts is None:
                outputs = self._gradients(session) if self.gradients_again else session.moments.outputs
                with session.decoder.weights.hold(index):
                    facts = {"mix": self._fit_block(session, index, ranks, outputs, *pairs)}
                session.finish(index, facts)
            chosen += facts["mix"]
            for pair in pairs:
                pair.advance()
        session.pieces.drop(f"{session.stages.stage}/gradients")
        if len(pairs) == 1:
            return []
        return [f"Anchored targets: mix {', '.join(f'{m:g}' for m in chosen)} for the inputs in order."]

    def _fit_block(
        self, session: Session, index: int, ranks: Ranks, outputs: Outputs, pair: Pair, held_out: Pair | None = None
    ) -> list[float]:
        """Replace a block's linears; returns the mix of each input."""
        leader = session.moments.leader
        inputs = dict.fromkeys(leader[name] for name in leader if name in session.linears[index])
        groups = [{name: rank for name, rank in ranks.items() if rank and leader[name] == first} for first in inputs]
        return [self._fit(session, group, outputs, pair, held_out) for group in groups if group]

    def _gradients(self, session: Session) -> Outputs:
        """Of the model before this pass, kept until it ends."""
        key = f"{session.stages.stage}/gradients"
        if key not in session.pieces:
            shelve(self._collected(session), session.pieces, key)
        found = on_shelves(session.pieces, session.decoder.device)
        take_up(found, session.pieces, key)
        return found.outputs

    def _collected(self, session: Session) -> Moments:
        model, ids = session.decoder.model, session.windows.calibration[: self.gradients_again]
        present = [{name: model.get_submodule(name) for name in block} for block in session.linears]
        moments, seed = Moments(), session.windows.record["seed"]
        labels = session.metric.gradient_labels
        collect_gradients(session.decoder, ids, present, moments, labels=labels, seed=seed, track=session.track)
        return moments

    def _fit(
        self,
        session: Session,
        group: dict[str, int],
        outputs: Outputs,
        pair: Pair,
        held_out: Pair | None = None,
    ) -> float:
        """Replace the linears of one input; returns the mix."""
        moments = pair.moments(group, self.residual)
        moments.settle()
        mixes = self.mix if isinstance(self.mix, tuple) else (self.mix,)
        errors: dict[float, float] = {}
        for mix in mixes:
            self._build(session, group, outputs, moments, mix)
            if held_out is not None:
                errors[mix] = held_out.block_error()
        if held_out is None:
            return mixes[0]
        best = min(errors, key=lambda mix: errors[mix])
        if best != mixes[-1]:
            self._build(session, group, outputs, moments, best)
        return best

    def _build(
        self, session: Session, group: dict[str, int], outputs: Outputs, moments: PairMoments, mix: float
    ) -> None:
        def target(name: str) -> Job[Tensor]:
            weight = weight_of(session.dense[name]).detach()
            cross = moments.cross[name] if isinstance(self.mix, tuple) else moments.cross.pop(name)
            return lambda: anchored_target(weight, moments.gram, cross, mix, self.damping)

        def layers(unit: Group) -> Job[Sequence[Form]]:
            rank, dense = group[unit[0]], [session.dense[name] for name in unit]
            sites = [replace(session.site(name), outputs=outputs.get(name)) for name in unit]
            targets = [target(name) for name in unit]

            def made() -> Sequence[Form]:
                weight = torch.cat([make() for make in targets])
                grams = Grams(session.metric.stacked_gram(sites), moments.gram)
                decomposition = decompose(weight, grams, session.metric.route, rank)
                if len(unit) == 1:
                    weight = weight.to(weight_of(dense[0]).dtype)
                    return [session.form.build(Target(dense[0], weight, grams, decomposition), rank)]
                return session.form.build_joint(dense, decomposition, rank, unit[0].rpartition(".")[2])

            return made

        for name, made in dealt_layers(session, session.units(group), layers).items():
            set_module(session.decoder.model, name, made)
        link(session.decoder.model)


def anchored_target(weight: Tensor, gram: Tensor, cross: Tensor, mix: float, damping: float) -> Tensor:
    """T = W + mix (C - W H) (H + damping tr(H)/n I)^-1 for W (m, n), H = E[x^ x^T] (n, n) and C = E[t x^T] (m, n).

    Without damping that is ((1 - mix) W H + mix C) H^-1; what the inputs say little of stays with W. H is overwritten,
    to spare a copy. In float64.
    """
    if not mix:
        return weight.double()
    correction = torch.addmm(cross, weight.double(), gram, alpha=-1)
    return solved(correction, factor_(gram, damping)).mul_(mix).add_(weight)
