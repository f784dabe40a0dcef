"""Whether a budget of bytes would go to pivots in 8 bits: predicted nats with such candidates and without.

    python benchmarks/eight_bit_pivots.py demo --out pivots.json
    python benchmarks/eight_bit_pivots.py MODEL --calibration train.txt --out pivots.json

A row a mean number of bits of the blocks' linears. Pivots and combinations, of a linear or jointly of several, are
offered beside all else at ranks that are `--step` apart, for the bytes that they would take and the loss that is
expected of them: that of the cut, of the rounded pivots in their own rows and, C being fitted again, in the others, and
of the rounded C, with feedback along both sides. Nothing is built or rounded.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rows as rows_of
import torch
from rows import Task
from torch import Tensor

import slimrank
from slimrank import load_recipe
from slimrank.allocate import Nats, Problem
from slimrank.allocate.bytes import HEADER, Bytes
from slimrank.allocate.candidates import Candidates
from slimrank.allocate.choices import Choices
from slimrank.allocate.stored import Options, Stored
from slimrank.calibrate.evidence import calibrate
from slimrank.errors import UsageError
from slimrank.forms import Pivoted
from slimrank.forms.bits import packed_bytes
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.units import Unit
from slimrank.numerics.grams import Blocks
from slimrank.numerics.pivots import pivot_rows
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Pricing, Weights, dense_price
from slimrank.run.steps import decompose
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.decomposition import Decomposition
from slimrank.spectrum.spectra import Spectra
from slimrank.texts.reading import Reading, read_windows


@dataclass(frozen=True)
class Pivots(Stored):
    """A unit whose pivots and combinations have 8 bits."""


@dataclass(frozen=True)
class WithPivots(Options):
    """The options of units, and pivots in 8 bits at the ranks that have a price."""

    prices: Mapping[Unit, Mapping[int, float]] = field(default_factory=dict)

    def of_floats(self, unit: Unit, curve: Curve) -> Choices[Stored]:
        """The form's, and these."""
        own = self.prices[unit]
        costs = np.array([bytes_of(unit, rank) for rank in own], float)
        losses = np.array([curve.loss(rank) + price for rank, price in own.items()])
        return super().of_floats(unit, curve).beside(Choices(costs, losses, [{unit: Pivots(rank)} for rank in own]))


def bytes_of(unit: Unit, rank: int) -> int:
    """r n + (m - r) r numbers of 8 bits, m scales of 2 bytes, a bit a row, and the tensors' places in the header."""
    rows, columns = sum(m for m, _ in unit.shapes), unit.shapes[0][1]
    tensors = ["weight", *Pivoted.stored_names()]
    shared = [name for name in tensors if not name.startswith("pivots.")]
    header = sum(
        HEADER + len(name) + len(tensor)
        for name in unit.names
        for tensor in (tensors if name == unit.leader else shared)
    )
    return rank * columns + (rows - rank) * rank + 2 * rows + packed_bytes(rows) + header


def price(decomposition: Decomposition, left: Tensor, right: Tensor, rank: int, pricing: Pricing) -> float:
    """The expected loss of rounding the pivots W'[P] and C to 8 bits; left G (m, m), right H (n, n).

    An error E of the pivots costs tr(M E H E^T) with M = [I, C]^T G [I, C] where C stays. Fitted again, C takes back
    what of C E lies in the span of the pivots, a share s = r / n: M = s G[P, P] + (1 - s) [I, C]^T G [I, C].
    """
    factors = decomposition.cut(rank)
    rows, combinations = pivot_rows(factors[0])
    pivots, ordered = factors[0][rows[:rank]] @ factors[1], left[rows][:, rows]
    both, share = torch.cat([torch.eye(rank).to(combinations), combinations]), rank / pivots.shape[1]
    of_pivots = share * ordered[:rank, :rank] + (1 - share) * both.T @ ordered @ both
    total = 0.0
    inner = pivots @ right @ pivots.T
    for weight, outer, along in ((pivots, of_pivots, right), (combinations, ordered[rank:, rank:], inner)):
        if weight.numel():
            weights = Weights.of(outer, along, two_sided=pricing.two_sided, damping=pricing.damping)
            total += dense_price(weight, Grid(8), weights)
    return total


def priced(spectra: Spectra, pricing: Pricing, step: float) -> dict[Unit, dict[int, float]]:
    """By unit and rank, the prices at ranks that are so large a share of the full one apart."""
    found: dict[Unit, dict[int, float]] = {}
    for unit in (*spectra.curves, *spectra.stacks):
        decomposition, grams = spectra.decomposition(unit), spectra.grams(unit)
        left = grams.left.whole() if isinstance(grams.left, Blocks) else grams.left
        ranks = {round(share * unit.full_rank) for share in np.arange(1, 0, -step)} - {0}
        assert left is not None and grams.right is not None
        found[unit] = {rank: price(decomposition, left, grams.right, rank, pricing) for rank in sorted(ranks)}
        spectra.held.clear()
    return found


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The rows, all from one calibration."""
    recipe, loaded = load_recipe("slimrank", options.set).sized(), slimrank.load(options.model)
    model, allocate = Compressible(Decoder(loaded.model)), recipe.allocate
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    spectra = decompose(model, calibrate(model, windows, recipe.needs), recipe, pricing=recipe.pricing)
    cost = Bytes(recipe.form, loaded.dtype.itemsize)
    assert isinstance(allocate, Nats) and recipe.pricing is not None
    prices = priced(spectra, recipe.pricing, options.step)
    without = allocate.candidates(Problem(1.0, recipe.form, spectra), cost)
    given = Candidates.of(spectra, WithPivots(recipe.form, allocate.pricing, cost, prices), allocate.gain)
    numbers = sum(unit.parameters for unit in spectra.curves)
    for task in todo:
        left = task["bits"] * numbers / 8
        if left < without.least:
            least = 8 * without.least / numbers
            raise UsageError(f"--bits {task['bits']:g} is below the least that all linears can take, {least:.3f}.")
        before, after = without.within(left), given.within(left)
        taken = [unit for unit, one in after.items() if isinstance(one, Pivots)]
        yield task | {
            "without": loss_of(spectra, before, prices),
            "given": loss_of(spectra, after, prices),
            "taken": sum(len(unit.names) for unit in taken),
            "joint": sum(len(unit.names) > 1 for unit in taken),
            "linears": sum(len(unit.names) for unit in after),
        }


def loss_of(spectra: Spectra, stored: Mapping[Unit, Stored], prices: Mapping[Unit, Mapping[int, float]]) -> float:
    """The summed predicted loss."""
    cut = sum(spectra.curve(unit).stored(one.rank, one.grid) for unit, one in stored.items())
    return cut + sum(prices[unit][one.rank or 0] for unit, one in stored.items() if isinstance(one, Pivots))


def table(rows: Sequence[Task]) -> Iterator[str]:
    """Markdown."""
    yield "\n| bits | predicted nats | with pivots in 8 bits | gain | linears that take them |"
    yield "|---" * 5 + "|"
    for row in rows:
        gain = 1 - row["given"] / row["without"]
        cells = [f"{row['bits']:g}", f"{row['without']:.5f}", f"{row['given']:.5f}", f"{gain:.2%}"]
        yield f"| {' | '.join(cells)} | {row['taken']} of {row['linears']} |"


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    rows_of.add_calibration(parser, "SPEC of the calibration text; needed unless MODEL is demo")
    parser.add_argument("--bits", type=numbers_of, default=[2.5, 3, 4, 5, 6, 8], help="of a linear's number, mean: a,b")
    parser.add_argument("--step", type=float, default=0.125, help="between ranks, as a share of the full one")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe slimrank")
    parser.add_argument("--samples", type=rows_of.count, default=32, help="calibration windows")
    parser.add_argument("--window", type=rows_of.count, default=256)
    parser.add_argument("--seed", type=int, default=3)
    rows_of.add_options(parser, jobs=False)
    options = parser.parse_args()
    with rows_of.one_sentence():
        settings: dict[str, Any] = {key: getattr(options, key) for key in ("samples", "window", "seed", "step")}
        settings |= {
            "model": rows_of.named(options.model),
            "calibration": rows_of.calibrated_on(options.calibration or ["demo"]),
        }
        tasks = [{"bits": bits, "set": options.set} for bits in options.bits]
        found = rows_of.run(options, tasks, measure, settings)
    print("\n".join(table(found)))


def numbers_of(text: str) -> list[float]:
    """The numbers of a list such as 3,4.5."""
    return [float(part) for part in text.split(",")]


if __name__ == "__main__":
    main()
