"""Anchored sequential targets: each linear is fitted to what the dense model does, on the inputs it will really get."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.calibrate.pairs import PairMoments
from slimrank.factorize import Target
from slimrank.forms import Form, link
from slimrank.forms.linear import weight_of
from slimrank.model.decoder import set_module
from slimrank.model.units import Unit
from slimrank.numerics.damped import factor_, solved
from slimrank.numerics.grams import Grams, shrunk_
from slimrank.numerics.threads import Job
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.factors import dealt_layers
from slimrank.refine.pair import Pair
from slimrank.spectrum.decomposition import decompose_weight
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run

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

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """The linears that are planned to be dense stay as they are."""
        model = spectra.model
        pair = Pair(model, spectra.evidence.windows.calibration[: self.windows])
        for index in run.track(range(len(model.blocks)), "anchoring", len(model.blocks)):
            if run.finished(index) is None:
                with model.decoder.weights.hold(index):
                    self._fit_block(spectra, cuts, index, pair)
                run.finish(index)
            pair.advance()
        return []

    def _fit_block(self, spectra: Spectra, cuts: Cuts, index: int, pair: Pair) -> None:
        """Replace a block's linears, those of one input at a time."""
        leader, units = spectra.evidence.moments.leader, cuts.of_block(index)
        for first in dict.fromkeys(leader[name] for name in leader if name in spectra.model.blocks[index]):
            reading = [unit for unit in units if leader[unit.leader] == first]
            if reading:
                moments = pair.moments([name for unit in reading for name in unit.names], self.residual)
                moments.settle()
                self._build(spectra, cuts, reading, moments)

    def _build(self, spectra: Spectra, cuts: Cuts, units: Sequence[Unit], moments: PairMoments) -> None:
        def layers(unit: Unit) -> Job[Sequence[Form]]:
            rank, dense = cuts.ranks[unit], [spectra.model.linears[name] for name in unit.names]
            weights = [spectra.weight(spectra.model.units[name]) for name in unit.names]
            crosses, left = [moments.cross.pop(name) for name in unit.names], spectra.left(unit)

            def made() -> Sequence[Form]:
                pairs = zip(weights, crosses, strict=True)
                weight = torch.cat([self._target(one, moments.gram(), cross) for one, cross in pairs])
                grams = Grams(left, shrunk_(moments.gram(), self.shrink))
                decomposition = decompose_weight(weight, grams, spectra.route, rank)
                weight = weight.to(weight_of(dense[0]).dtype)
                target = Target(dense, weight, grams, decomposition, unit.leader.rpartition(".")[2])
                return cuts.form.build(target, rank).layers

            return made

        for name, made in dealt_layers(spectra.model, units, layers).items():
            set_module(spectra.model.decoder.model, name, made)
        link(spectra.model.decoder.model)

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
