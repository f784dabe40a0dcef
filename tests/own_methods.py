"""A metric, an allocator, a form and a refiner from outside the package: a class and a line in a table each."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from slimrank.allocate import ALLOCATORS, Allocation, Allocator, Problem
from slimrank.allocate.budget import fit_ranks
from slimrank.calibrate import InputMoments, OutputMoments
from slimrank.calibrate.needs import Needs
from slimrank.factorize import FACTORIZERS, Factorizer, Target
from slimrank.factorize.base import Built
from slimrank.forms import FORMS, Form
from slimrank.forms.linear import permute_inputs, permute_outputs
from slimrank.forms.quantized import floats_of, matrix_of, picked
from slimrank.forms.shard import Shard, frozen
from slimrank.metric import METRICS, Metric
from slimrank.refine import REFINERS, Refiner
from slimrank.refine.base import Cuts
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run


class Scaled(Form):
    """y = U (s * V x) + b with a scale s (r,) between V = `down` (r, in) and U = `up` (out, r)."""

    form = "scaled"
    factors = ("down", "up")
    tensors = ("between",)
    bias_name = "up.bias"
    refused_bits = {4: "it is a toy; take 8 bits"}  # noqa: RUF012

    def __init__(self, in_features, out_features, rank, bias=True, *, device=None, dtype=None):
        super().__init__(in_features, out_features, rank, device=device, dtype=dtype)
        self.down = nn.Linear(in_features, rank, bias=False, device=device, dtype=dtype)
        self.between = nn.Parameter(torch.ones(rank, device=device, dtype=dtype))
        self.up = nn.Linear(rank, out_features, bias=bias, device=device, dtype=dtype)

    def forward(self, x):
        return self.up(self.between * self.down(x))

    @classmethod
    @torch.no_grad()
    def from_low_rank(cls, left, right, bias=None):
        """The columns of U have length 1, their lengths are the scale."""
        module = cls.empty(right.shape[1], *left.shape, bias is not None, left.dtype).to_empty(device=left.device)
        length = left.norm(dim=0)
        module.down.weight.copy_(right)
        module.between.copy_(length)
        module.up.weight.copy_(left / length)
        if bias is not None:
            module.up.bias.copy_(bias)
        return module

    @staticmethod
    def count_parameters(out_features, in_features, entry):
        return entry["rank"] * (out_features + in_features + 1)

    @staticmethod
    def count_outputs(entry, tensors):
        return len(tensors["up.weight"])

    @torch.no_grad()
    def dense_weight(self):
        return matrix_of(self.up) * self.between.double() @ matrix_of(self.down)

    def permute_outputs(self, order):
        permute_outputs(self.up, order)

    def permute_inputs(self, order):
        permute_inputs(self.down, order)

    def shard(self, rows, columns):
        return ScaledShard(self, rows, columns)


class ScaledShard(Shard):
    def __init__(self, layer: Scaled, rows: Tensor, columns: Tensor) -> None:
        super().__init__(picked(layer.down, columns=columns))
        self.up = frozen(floats_of(layer.up)[rows] * layer.between)

    def forward(self, h: Tensor) -> Tensor:
        return nn.functional.linear(h, self.up)


class ScaledFactorizer(Factorizer):
    """r (m + n + 1) numbers."""

    name: Literal["scaled"] = "scaled"

    def entries(self, shapes: Sequence[tuple[int, int]], rank: int) -> list[dict[str, Any]]:
        return [{"form": Scaled.form, "rank": rank} for _ in shapes]

    def build(self, target: Target, rank: int) -> Built:
        layer = Scaled.from_low_rank(*target.decomposition.cut(rank), *target.biases)
        return Built(target.in_their_dtypes([layer]), target.decomposition.loss(rank))


class Diagonals(Metric):
    """L L^T the diagonal of G, R R^T that of H."""

    name: Literal["diagonals"] = "diagonals"

    @property
    def needs(self) -> Needs:
        return Needs(gradients=True)

    def left(self, outputs: OutputMoments) -> Tensor:
        return outputs.mean().diagonal().clone()

    def right(self, inputs: InputMoments) -> Tensor:
        return inputs.mean().diagonal().clone()


class LaterMore(Allocator):
    """Every block keeps a little more than the one before it."""

    name: Literal["later_more"] = "later_more"
    slope: float = 0.1

    def allocate(self, problem: Problem) -> Allocation:
        middle = max(problem.by_block()) / 2
        shares = {unit: problem.keep + self.slope * (unit.block - middle) for unit in problem.curves}
        return Allocation(fit_ranks(problem, shares), ("Later blocks keep more.",))


class Lengths(Refiner):
    """Every layer is scaled to the length of its dense weight, block by block."""

    name: Literal["lengths"] = "lengths"
    whole_model: ClassVar[bool] = False

    def refine(self, spectra: Spectra, cuts: Cuts, run: Run) -> list[str]:
        model = spectra.model.decoder.model
        for index in range(len(spectra.model.blocks)):
            if run.finished(index) is None:
                with spectra.model.decoder.weights.hold(index), torch.no_grad():
                    for unit in cuts.of_block(index):
                        layer = model.get_submodule(unit.leader)
                        layer.between *= spectra.weight(unit).norm() / layer.dense_weight().norm()
                run.finish(index)
        return [f"{len(cuts.ranks)} layers have their dense lengths."]


TABLES = [
    (FORMS, Scaled.form, Scaled),
    (FACTORIZERS, "scaled", ScaledFactorizer),
    (METRICS, "diagonals", Diagonals),
    (ALLOCATORS, "later_more", LaterMore),
    (REFINERS, "lengths", Lengths),
]
RECIPE = "metric: diagonals\nallocate: {name: later_more, slope: 0.05}\nform: scaled\nrefine: [lengths]\n"


def register() -> None:
    """Put all of them into their tables, for good."""
    for table, name, kind in TABLES:
        table[name] = kind
