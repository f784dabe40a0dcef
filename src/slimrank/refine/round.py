"""Rounding to few bits: each linear or its factors, against the inputs that the rounded blocks before give."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from slimrank.calibrate.pairs import PairMoments
from slimrank.errors import UsageError
from slimrank.factorize.rounded import dense_layer, low_rank_layer
from slimrank.forms import Form, LowRank
from slimrank.forms.quantized import matrix_of
from slimrank.model.units import Unit
from slimrank.numerics.grams import Blocks, Grams, shrunk_
from slimrank.numerics.threads import Job
from slimrank.refine.anchored import truncated
from slimrank.refine.base import Cuts
from slimrank.refine.ends import end_grid, round_ends
from slimrank.refine.sequential import Sequential, Share
from slimrank.rounding.feedback import Factor, round_weight
from slimrank.rounding.grid import Grid
from slimrank.rounding.resolve import round_factors
from slimrank.spectrum.decomposition import decompose_weight
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run

Sides = Literal["none", "inputs", "both"]


class Round(Sequential):
    """Builds all layers from new target weights and rounds those that the plan gives a width.

    A low-rank unit is cut, its V rounded, its U fitted again to the rounded V and rounded too; a unit that stays dense
    is rounded as it is. bits, group: the width, and the inputs that share a scale (None for a whole row), of every
    linear that the plan gives none; without `bits` these stay floats. feedback: whether each number makes up for the
    rounding of others along the inputs (GPTQ), along both inputs and outputs (needs a metric with gradients), or not at
    all. resolve: whether U is fitted again. ridge: the share of a Gram's mean diagonal that is added to it for
    rounding. rebuild: false rounds the factors that the steps before have left, whose product is then the target. ends:
    the width of embedding and head, a scale in every row, where the plan gives none; None leaves them floats.
    """

    name: Literal["round"] = "round"
    doing: ClassVar[str] = "rounding"

    bits: Literal[2, 3, 4, 8] | None = None
    group: Annotated[int, Field(ge=1)] | None = 128
    feedback: Sides = "both"
    resolve: bool = True
    ridge: Share = 0.01
    rebuild: bool = True
    ends: Literal[4, 8] | None = None

    @property
    def rebuilds(self) -> bool:
        """The option `rebuild`."""
        return self.rebuild

    @property
    def grid(self) -> Grid | None:
        """The grid of units that the plan gives none."""
        return None if self.bits is None else Grid(self.bits, self.group)

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        """Replace every unit's linears, and then embedding and head; returns no notes."""
        notes = super().refine(spectra, cuts, run)
        model = spectra.model
        grids = cuts.ends or ({} if self.ends is None else dict.fromkeys(model.ends, end_grid(self.ends)))
        if grids and run.finished(None) is None:
            with model.decoder.weights.hold(None):
                round_ends(model.decoder.model, grids)
            run.finish(None)
        return notes

    def units(self, spectra: Spectra, cuts: Cuts, index: int) -> list[Unit]:
        """Those that the plan factorises or rounds; with `bits` all that calibration reached."""
        changed = cuts.changed(index)
        if self.grid is None:
            return changed
        named = {name for unit in changed for name in unit.names}
        return changed + [unit for unit in spectra.curves if unit.block == index and unit.leader not in named]

    def layers(self, spectra: Spectra, cuts: Cuts, unit: Unit, moments: PairMoments) -> Job[Sequence[Form]]:
        """The job that cuts and rounds a unit's target."""
        grid = cuts.grids.get(unit, self.grid)
        require_single(unit, grid)
        target, left = self.target(spectra, unit, moments), spectra.left(unit)
        dense = spectra.model.linears[unit.leader]
        built = None if self.rebuild else spectra.model.decoder.model.get_submodule(unit.leader)

        def made() -> Sequence[Form]:
            factors = factors_of(unit, built)
            weight = target() if factors is None else factors[0] @ factors[1]
            grams = Grams(left, shrunk_(moments.gram(), self.shrink))
            if grid is None:
                return truncated(spectra, cuts, unit, weight, grams)
            rank = cuts.ranks.get(unit)
            if factors is None and rank is not None:
                factors = decompose_weight(weight, grams, spectra.route, rank).cut(rank)
            if factors is None:
                return [dense_layer(dense, round_weight(weight, grid, *self.sides(grams)))]
            rounded = round_factors(
                weight,
                *factors,
                grams,
                grid,
                two_sided=self.feedback == "both",
                feedback=self.feedback != "none",
                resolve=self.resolve,
                damping=self.ridge,
            )
            return [low_rank_layer(dense, rounded)]

        return made

    def sides(self, grams: Grams) -> tuple[Factor, Factor]:
        """The factors of G and H along which feedback runs."""
        assert not isinstance(grams.left, Blocks), "one linear is rounded"
        if self.feedback == "none":
            return Factor(), Factor.of(None if grams.right is None else grams.right.diagonal())
        left = grams.left if self.feedback == "both" else None
        return Factor.of(left, self.ridge), Factor.of(grams.right, self.ridge)


def require_single(unit: Unit, grid: Grid | None) -> None:
    """Raise a UsageError for several linears that are factorised together and would be rounded."""
    if grid is not None and len(unit.names) > 1:
        raise UsageError(f"refine.round can't round {unit.key}, which share one right factor: set form to low_rank.")


def factors_of(unit: Unit, built: torch.nn.Module | None) -> tuple[Tensor, Tensor] | None:
    """U (m, r) and V (r, n) of a layer that was built, float64; None for a dense one.

    Raises:
        UsageError: for a layer in another form.
    """
    if isinstance(built, LowRank):
        return matrix_of(built.up), matrix_of(built.down)
    if isinstance(built, Form):
        raise UsageError(f"{unit.leader} is {built.form} and refine.round needs form low_rank: change one of them.")
    return None
