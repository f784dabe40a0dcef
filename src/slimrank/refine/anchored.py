"""Anchored targets: each linear is fitted to the dense model's output on the compressed model's input."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import Tensor

from slimrank.calibrate.pairs import PairMoments
from slimrank.factorize import Target
from slimrank.forms import Form
from slimrank.forms.linear import weight_of
from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams, shrunk_
from slimrank.numerics.threads import Job
from slimrank.refine.base import Cuts
from slimrank.refine.sequential import Sequential
from slimrank.spectrum.decomposition import decompose_weight
from slimrank.spectrum.spectra import Spectra


class Anchored(Sequential):
    """Builds all factors from new target weights, truncated under the metric's left Gram and the shrunk H."""

    name: Literal["anchored"] = "anchored"
    doing: ClassVar[str] = "anchoring"

    def layers(self, spectra: Spectra, cuts: Cuts, unit: Unit, moments: PairMoments) -> Job[Sequence[Form]]:
        """The job that truncates a unit's target."""
        target, left = self.target(spectra, unit, moments), spectra.left(unit)

        def made() -> Sequence[Form]:
            weight = target()
            return truncated(spectra, cuts, unit, weight, Grams(left, shrunk_(moments.gram(), self.shrink)))

        return made


def truncated(spectra: Spectra, cuts: Cuts, unit: Unit, weight: Tensor, grams: Grams) -> Sequence[Form]:
    """The layers of a unit whose stacked target `weight` (m, n) is cut to its rank under `grams`."""
    rank, dense = cuts.ranks[unit], [spectra.model.linears[name] for name in unit.names]
    decomposition = decompose_weight(weight, grams, spectra.route, rank)
    weight = weight.to(weight_of(dense[0]).dtype)
    target = Target(dense, weight, grams, decomposition, unit.leader.rpartition(".")[2])
    return cuts.form.built(target, rank).layers
