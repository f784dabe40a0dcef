"""The working state of one compression: the values that the pipeline has made so far."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from slimrank.calibrate import Moments, Windows
from slimrank.factorize import Factorizer, Target
from slimrank.linear import shape_of, weight_of
from slimrank.metric import Metric, Site
from slimrank.model import Decoder, set_module
from slimrank.progress import Track, no_track
from slimrank.spectrum import Decomposition, LinearSpectrum, Spectrum


@dataclass
class Session:
    """What the steps share. linears: per block, the dense linears by name, also after others took their place.

    choices: by linear, what the metric settled by measuring; found: by linear, what the form searched for.
    """

    decoder: Decoder
    linears: list[dict[str, nn.Module]]
    windows: Windows
    metric: Metric
    form: Factorizer
    keep: float
    moments: Moments
    held_out: Moments
    decompositions: dict[str, Decomposition] = field(default_factory=dict)
    choices: dict[str, float] = field(default_factory=dict)
    found: dict[str, dict[int, Any]] = field(default_factory=dict)
    track: Track = no_track

    @property
    def dense(self) -> dict[str, nn.Module]:
        """Every dense linear by name."""
        return {name: module for block in self.linears for name, module in block.items()}

    def site(self, name: str) -> Site:
        """A linear as a metric sees it."""
        return Site(
            name,
            weight_of(self.dense[name]).detach(),
            self.moments.input_of(name),
            self.held_out.inputs.get(self.moments.leader[name]),
            self.moments.outputs.get(name),
            self.keep,
            self.role(name),
            self.choices,
        )

    def target(self, name: str) -> Target:
        """A linear as a factorizer sees it."""
        site, found = self.site(name), self.found.setdefault(name, {})
        return Target(self.dense[name], site.weight, self.metric.grams(site), self.decompositions[name], found)

    def role(self, name: str) -> str:
        """A linear's name inside its block."""
        return name.removeprefix(f"{self.decoder.prefix}.").partition(".")[2]

    def spectrum(self) -> Spectrum:
        """The spectra of all linears, in the model's order."""
        return Spectrum(
            {
                name: LinearSpectrum(
                    self.decompositions[name].values,
                    shape_of(dense),
                    index,
                    self.role(name),
                )
                for index, block in enumerate(self.linears)
                for name, dense in block.items()
            }
        )

    @contextmanager
    def replaced(self, modules: dict[str, nn.Module]) -> Iterator[None]:
        """Put other modules in the place of linears for a while."""
        model = self.decoder.model
        before = {name: model.get_submodule(name) for name in modules}
        for name, module in modules.items():
            set_module(model, name, module)
        try:
            yield
        finally:
            for name, module in before.items():
                set_module(model, name, module)
