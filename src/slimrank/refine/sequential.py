"""The walk of refiners that build layers block by block, each against what the blocks built before it give."""

from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from slimrank.calibrate.experts import prior_tokens, sum_of
from slimrank.calibrate.needs import Holds, Work
from slimrank.calibrate.pairs import PairMoments
from slimrank.factorize.shared import SharedFactorizer
from slimrank.forms import Form, link
from slimrank.forms.experts import place_of
from slimrank.model.modules import set_module
from slimrank.model.units import Unit
from slimrank.numerics.damped import factor_, solved
from slimrank.numerics.gram_sum import GramSum
from slimrank.numerics.grams import Grams, shrunk_
from slimrank.numerics.shared import Part, own_factor
from slimrank.numerics.threads import Job
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.factors import dealt_layers
from slimrank.refine.pair import Pair
from slimrank.runtime.memory import trim
from slimrank.spectrum.shared import by_step, common_factor
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.windows import Windows

HELD = 2**30  # bytes of the moments of experts that are summed in one pass
Share = Annotated[float, Field(ge=0, le=1)]


class Sequential(Refiner):
    """Builds layers from target weights, block by block in forward order.

    With x^ the linear's input in the model compressed so far, H = E[x^ x^T] and t the dense model's output, the target
    is T = W + mix (E[t x^T] - W H) (H + damping tr(H)/n I)^-1.

    mix: 0 keeps W, 1 takes the least-squares fit to t; damping: ridge that keeps T near W in directions of little input
    energy, raised tenfold until H can be factored. shrink: the share of H that is replaced by its mean diagonal before
    T is approximated, for texts unlike the calibration text. residual: t also corrects the error of the residual stream
    before it. windows: how many calibration windows are used, all by default.
    """

    whole_model: ClassVar[bool] = False
    doing: ClassVar[str] = "fitting"

    mix: Share = 0.5
    damping: Annotated[float, Field(gt=0)] = 0.1
    shrink: Share = 0.05
    residual: bool = True
    windows: Annotated[int, Field(ge=1)] | None = None

    def work(self, windows: Windows) -> Work:
        """Both models, and products of inputs and outputs; every linear is decomposed once more."""
        return Work(windows.calibration[: self.windows].numel(), blocks=4, decompositions=1)

    def holds(self, windows: Windows) -> Holds:
        """The states of both models, and what the linears of a block give."""
        return Holds(windows.calibration[: self.windows].numel(), states=2, outputs=True)

    @property
    def rebuilds(self) -> bool:
        """True: the layers are built from the dense weights."""
        return True

    def units(self, spectra: Spectra, cuts: Cuts, index: int) -> list[Unit]:
        """The units of a block that are built."""
        return cuts.of_block(index)

    def layers(self, spectra: Spectra, cuts: Cuts, unit: Unit, moments: PairMoments) -> Job[Sequence[Form]]:
        """The job that makes a unit's layers."""
        raise NotImplementedError

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Replace every unit's linears; returns no notes."""
        model = spectra.model
        pair = Pair(model, spectra.evidence.windows.calibration[: self.windows], self.residual)
        for index in run.track(range(len(model.blocks)), self.doing, len(model.blocks)):
            if run.finished(index) is None:
                with model.decoder.weights.hold(index):
                    self._fit_block(spectra, cuts, index, pair)
                run.finish(index)
            pair.advance()
            trim()
        return []

    def _fit_block(self, spectra: Spectra, cuts: Cuts, index: int, pair: Pair) -> None:
        """Replace a block's linears, in groups that share an input, in forward order."""
        units = self.units(spectra, cuts, index)
        common = {name: unit for unit in units if unit.shared for name in unit.names}
        for stage in stages(spectra, units):
            pair.stay(kept_until(spectra, pair.block, units, stage))
            groups = [[name for unit in reading for name in unit.names] for reading in stage]
            found = pair.moments(groups)
            if len(found) > 1 or place_of(spectra.model.decoder.model, groups[0][0]):
                completed(found, self._pooled(spectra, pair, found, [name for (name,) in groups]))
            for reading, moments in zip(stage, found, strict=True):
                moments.settle()
                if reading[0].leader in common:
                    self._build_expert(spectra, cuts, common[reading[0].leader], reading[0], moments)
                else:
                    self._build(spectra, cuts, reading, moments)
            link(spectra.model.decoder.model)

    def _pooled(
        self, spectra: Spectra, pair: Pair, found: Sequence[PairMoments], names: Sequence[str]
    ) -> Sequence[PairMoments]:
        """The moments of some experts that tokens were routed to: those of `names`, or else of others beside them."""
        model, pool = spectra.model.decoder.model, [one for one in found if one.tokens]
        others = [name for name in pair.block if place_of(model, name) == place_of(model, names[0])]
        others = [name for name in others if name not in names]
        for start in range(0, len(others), len(names)):
            if pool:
                break
            groups = [[name] for name in others[start : start + len(names)]]
            pool = [one for one in pair.moments(groups, fitted=False) if one.tokens]
        return pool

    def _build(self, spectra: Spectra, cuts: Cuts, units: Sequence[Unit], moments: PairMoments) -> None:
        made = dealt_layers(spectra.model, units, lambda unit: self.layers(spectra, cuts, unit, moments))
        for name, layer in made.items():
            set_module(spectra.model.decoder.model, name, layer)

    def _build_expert(self, spectra: Spectra, cuts: Cuts, unit: Unit, single: Unit, moments: PairMoments) -> None:
        """Replace one expert's matrix, whose other factor all experts of `unit` share as calibration chose it."""
        assert unit.shared, "a unit of all experts"
        form = SharedFactorizer(side=unit.shared)

        def layers(single: Unit) -> Job[Sequence[Form]]:
            target, left = self.target(spectra, single, moments), spectra.left(single)
            rows, dense = common_factor(spectra, unit, cuts.ranks[unit]), spectra.model.linears[single.leader]

            def made() -> Sequence[Form]:
                weight = target()
                part = Part.of(weight, Grams(left, shrunk_(moments.gram(), self.shrink)), form.side)
                own = by_step(unit, rows, own_factor(part, rows))
                return [form.layer(own, dense, None if single.leader == unit.leader else unit.local)]

            return made

        for name, layer in dealt_layers(spectra.model, [single], layers).items():
            set_module(spectra.model.decoder.model, name, layer)

    def target(self, spectra: Spectra, unit: Unit, moments: PairMoments) -> Job[Tensor]:
        """The job that gives T of a unit's linears, stacked (m, n) float64; takes their sums out of the moments."""
        weights = [spectra.weight(spectra.model.units[name]) for name in unit.names]
        if not self.mix:
            return lambda: torch.cat(weights).double()
        return lambda: torch.cat(
            [
                anchored_target(weight, moments.gram(), moments.take(name, weight), self.mix, self.damping)
                for name, weight in zip(unit.names, weights, strict=True)
            ]
        )


def anchored_target(weight: Tensor, gram: Tensor, cross: Tensor, mix: float, damping: float) -> Tensor:
    """T = W + mix (C - W H) (H + damping tr(H)/n I)^-1 for W (m, n), H = E[x^ x^T] (n, n) and C = E[t x^T] (m, n).

    Without damping that is ((1 - mix) W H + mix C) H^-1. Computed in float64; H is overwritten.
    """
    correction = torch.addmm(cross, weight.double(), gram, alpha=-1)
    return solved(correction, factor_(gram, damping)).mul_(mix).add_(weight)


def stages(spectra: Spectra, units: Sequence[Unit]) -> list[list[list[Unit]]]:
    """A block's units in groups that share an input, in forward order, and the groups in stages, each summed in a pass.

    The experts of a module and role are a stage, or several where their moments take much memory; those of a unit that
    shares a factor are groups of their own.
    """
    leader, model = spectra.evidence.moments.leader, spectra.model
    reading: dict[str, list[Unit]] = {}
    for unit in units:
        for one in [model.units[name] for name in unit.names] if unit.shared else [unit]:
            reading.setdefault(leader[one.leader], []).append(one)
    found: dict[object, list[list[list[Unit]]]] = {}
    for first in dict.fromkeys(leader.values()):
        if first not in reading:
            continue
        columns = reading[first][0].shape[1]
        size = max(1, HELD // (8 * columns * (columns // 2 + columns)))
        alike = found.setdefault(place_of(model.decoder.model, first) or first, [])
        if not alike or len(alike[-1]) == size:
            alike.append([])
        alike[-1].append(reading[first])
    return [stage for alike in found.values() for stage in alike]


def kept_until(
    spectra: Spectra, block: Iterable[str], units: Sequence[Unit], stage: Sequence[Sequence[Unit]]
) -> list[str]:
    """A block's linears that are in no unit and read what this stage or one before it reads; none for experts."""
    leader, model = spectra.evidence.moments.leader, spectra.model.decoder.model
    if place_of(model, stage[0][0].leader):
        return []  # an expert that no token reached comes last among the leaders, wherever it is run
    places = {first: place for place, first in enumerate(dict.fromkeys(leader.values()))}
    built, last = {name for unit in units for name in unit.names}, places[leader[stage[0][0].leader]]
    kept = [name for name in block if name in leader and name not in built and not place_of(model, name)]
    return [name for name in kept if places[leader[name]] <= last]


def completed(moments: Sequence[PairMoments], seen: Sequence[PairMoments]) -> None:
    """Add to each expert's moments k tokens of the mean of all, for which the target is what its own weight W gives.

    seen: moments of experts that tokens were routed to, whose mean it is. See calibrate.experts for k.
    """
    if not seen:
        return
    first = seen[0].sums
    assert first is not None, "tokens were added"
    k, tokens = round(prior_tokens(first.width)) or 1, sum(one.tokens for one in seen)
    mean = GramSum(sum_of([one.sums.packed for one in seen if one.sums], k / tokens), first.width, first.device)
    gram = mean.full()
    for own in moments:
        assert own.sums is not None and own.inputs is not None, "moments of experts are of their inputs, or zeros"
        own.inputs += gram
        own.sums.packed.add_(mean.packed)
        own.tokens += k
