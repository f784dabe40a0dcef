"""SVD-LLM's closed-form update (arXiv 2403.07378, version 1): U refitted to the compressed model's inputs."""

from typing import ClassVar, Literal

from torch import nn

from slimrank.calibrate.collect import add_up, watch_inputs
from slimrank.calibrate.moments import Moments
from slimrank.calibrate.needs import Holds, Work
from slimrank.calibrate.stream import Stream, default_batch
from slimrank.forms import LowRank
from slimrank.forms.linear import weight_of
from slimrank.model.compressible import Compressible
from slimrank.model.units import described
from slimrank.numerics.balance import balanced
from slimrank.refine.base import Cuts, Refiner
from slimrank.refine.factors import low_rank_layers
from slimrank.rounding.resolve import resolved_left
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.windows import Windows


class Update(Refiner):
    """U = argmin |W X - U V X|_F block by block, X the linear's inputs behind the compressed blocks before it.

    As in the authors' code, the block itself is dense while X is recorded.
    """

    name: Literal["update"] = "update"
    whole_model: ClassVar[bool] = False
    needs_floats: ClassVar[bool] = True

    def work(self, windows: Windows) -> Work:
        """Each block twice."""
        return Work(windows.calibration.numel(), blocks=2)

    def holds(self, windows: Windows) -> Holds:
        """The states of the compressed model."""
        return Holds(windows.calibration.numel(), states=1)

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Refit every U on all calibration windows; returns a note of the linears that no token reached."""
        model, decoder = spectra.model, spectra.model.decoder
        layers, missed = set(low_rank_layers(model, "update")), list[str]()
        windows = decoder.world.share(spectra.evidence.windows.calibration)
        stream = Stream(decoder, windows, default_batch(decoder, windows.shape[1]))
        for index in run.track(range(len(model.blocks)), "updating", len(model.blocks)):
            facts = run.finished(index)
            if facts is None:
                with decoder.weights.hold(index):
                    facts = {"missed": self._refit(model, model.blocks[index], layers, stream)}
                run.finish(index, facts)
            missed += facts["missed"]
            stream.skip(1)
        if not missed:
            return []
        units = [model.units[name] for name in sorted(missed)]
        return [f"Not updated, since no token reached them: {described(units)}."]

    def _refit(self, model: Compressible, linears: dict[str, nn.Module], layers: set[str], stream: Stream) -> list[str]:
        """Refit the U of a block's linears; returns the linears that no token reached."""
        moments, missed = Moments(), []
        with model.replaced(linears), watch_inputs(linears, moments) as inputs:
            for _ in stream.outputs():
                pass
        add_up(model.decoder, moments, inputs, linears)
        for name in linears.keys() & layers:
            if name not in moments.leader:
                missed.append(name)
                continue
            layer = model.decoder.model.get_submodule(name)
            assert isinstance(layer, LowRank)
            left = resolved_left(weight_of(linears[name]), layer.down.weight, moments.input_of(name).gram())
            left, right = balanced(left, layer.down.weight.double())
            layer.up.weight.data.copy_(left)
            layer.down.weight.data.copy_(right)
        return missed
