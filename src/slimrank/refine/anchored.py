"""Anchored sequential targets: each linear is fitted to what the dense model does, on the inputs it will really get."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.allocate import Ranks
from slimrank.calibrate.pairs import PairMoments
from slimrank.factorize import Target
from slimrank.forms import Form, link
from slimrank.metric import Grams
from slimrank.model.decoder import set_module
from slimrank.model.linear import weight_of
from slimrank.numerics.damped import factor_, solved
from slimrank.numerics.grams import shrunk_
from slimrank.refine.base import Refiner
from slimrank.refine.factors import dealt_layers
from slimrank.refine.pair import Pair
from slimrank.run.session import Group, Session
from slimrank.runtime.threads import Job
from slimrank.spectrum.decomposition import decompose

Share = Annotated[float, Field(ge=0, le=1)]


class Anchored(Refiner):
    """Builds the factors again, blocks in order and inside a block in the order of the inputs.

    With x^ the input that follows from the linears compressed so far, H = E[x^ x^T] and t the dense model's output, the
    target is T = W + mix (E[t x^T] - W H) (H + damping tr(H)/n I)^-1, cut in the metric's left Gram and in H shrunk.

    mix: how far the weight goes toward what fits the calibration windows best; damping: what the inputs say little of
    stays with W, tenfold as often as rounding left H indefinite. shrink: H's share in the cut that is replaced by its
    mean diagonal, for texts whose inputs are others. residual: let t also make up for what the residual stream lost
    before it. windows: how many calibration windows are used, all by default.
    """

    name: Literal["anchored"] = "anchored"
    whole_model: ClassVar[bool] = False

    mix: Share = 0.5
    damping: Annotated[float, Field(gt=0)] = 0.1
    shrink: Share = 0.05
    residual: bool = True
    windows: Annotated[int, Field(ge=1)] | None = None

    @property
    def work(self) -> float:
        """One decomposition."""
        return 1.0

    @property
    def rebuilds(self) -> bool:
        """It does."""
        return True

    def refine(self, session: Session, ranks: Ranks) -> list[str]:
        """The linears that are planned to be dense stay as they are."""
        pair = Pair(session, session.windows.calibration[: self.windows])
        for index in session.track(range(len(session.linears)), "anchoring", len(session.linears)):
            if session.finished(index) is None:
                with session.decoder.weights.hold(index):
                    self._fit_block(session, index, ranks, pair)
                session.finish(index)
            pair.advance()
        return []

    def _fit_block(self, session: Session, index: int, ranks: Ranks, pair: Pair) -> None:
        """Replace a block's linears, those of one input at a time."""
        leader = session.moments.leader
        for first in dict.fromkeys(leader[name] for name in leader if name in session.linears[index]):
            group = {name: rank for name, rank in ranks.items() if rank and leader[name] == first}
            if group:
                moments = pair.moments(group, self.residual)
                moments.settle()
                self._build(session, group, moments)

    def _build(self, session: Session, group: dict[str, int], moments: PairMoments) -> None:
        def layers(unit: Group) -> Job[Sequence[Form]]:
            rank, dense = group[unit[0]], [session.dense[name] for name in unit]
            sites, crosses = [session.site(name) for name in unit], [moments.cross.pop(name) for name in unit]

            def made() -> Sequence[Form]:
                pairs = zip(sites, crosses, strict=True)
                weight = torch.cat([self._target(site.weight, moments.gram, cross) for site, cross in pairs])
                grams = Grams(session.metric.stacked_gram(sites), shrunk_(moments.gram, self.shrink))
                decomposition = decompose(weight, grams, session.metric.route, rank)
                if len(unit) == 1:
                    weight = weight.to(weight_of(dense[0]).dtype)
                    return [session.form.build(Target(dense[0], weight, grams, decomposition), rank)]
                return session.form.build_joint(dense, decomposition, rank, unit[0].rpartition(".")[2])

            return made

        for name, made in dealt_layers(session, session.units(group), layers).items():
            set_module(session.decoder.model, name, made)
        link(session.decoder.model)

    def _target(self, weight: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
        return anchored_target(weight, gram, cross, self.mix, self.damping)


def anchored_target(weight: Tensor, gram: Tensor, cross: Tensor, mix: float, damping: float) -> Tensor:
    """T = W + mix (C - W H) (H + damping tr(H)/n I)^-1 for W (m, n), H = E[x^ x^T] (n, n) and C = E[t x^T] (m, n).

    Without damping that is ((1 - mix) W H + mix C) H^-1; what the inputs say little of stays with W. H is overwritten,
    to spare a copy. In float64.
    """
    if not mix:
        return weight.double()
    correction = torch.addmm(cross, weight.double(), gram, alpha=-1)
    return solved(correction, factor_(gram, damping)).mul_(mix).add_(weight)
