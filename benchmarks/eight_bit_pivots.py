"""Whether a budget of bytes would go to pivots in 8 bits: predicted nats with such candidates and without.

    python benchmarks/eight_bit_pivots.py demo --out pivots.json
    python benchmarks/eight_bit_pivots.py MODEL --calibration train.txt --out pivots.json

A row a mean number of bits of the blocks' linears. Pivots and combinations, of a linear or jointly of several, are
offered for less than they would cost: a byte a number and two a row for its scale, no names in a header, and the loss
of the cut alone, as if rounding them lost nothing. So what they gain here is the most that they can gain.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import rows as rows_of
from rows import Task

import slimrank
from slimrank import load_recipe
from slimrank.allocate import Nats, Problem
from slimrank.allocate.bytes import Bytes
from slimrank.allocate.candidates import Candidates
from slimrank.allocate.choices import Choices, ranks_of
from slimrank.allocate.stored import Options, Stored
from slimrank.calibrate.evidence import calibrate
from slimrank.forms.bits import packed_bytes
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.units import Unit
from slimrank.rounding.grid import Grid
from slimrank.run.steps import decompose
from slimrank.spectrum.curve import Curve
from slimrank.spectrum.spectra import Spectra
from slimrank.texts.reading import Reading, read_windows


@dataclass(frozen=True)
class Pivots(Stored):
    """A unit whose pivots and combinations have 8 bits."""


class WithPivots(Options):
    """The options of units, and pivots in 8 bits at every rank."""

    def of_floats(self, unit: Unit, curve: Curve) -> Choices[Stored]:
        """The form's, and these."""
        losses, ranks = curve.losses().numpy(), ranks_of(unit, self.cost.multiple(unit))
        costs = np.array([bytes_of(unit, rank) for rank in ranks], float)
        made = [{unit: Pivots(rank, Grid(8))} for rank in ranks]
        return super().of_floats(unit, curve).beside(Choices(costs, losses[ranks], made))


def bytes_of(unit: Unit, rank: int) -> int:
    """r n + (m - r) r numbers of 8 bits, m scales of 2 bytes, and a bit a row."""
    rows, columns = sum(m for m, _ in unit.shapes), unit.shapes[0][1]
    return rank * columns + (rows - rank) * rank + 2 * rows + packed_bytes(rows)


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The rows, all from one calibration."""
    recipe, loaded = load_recipe("slimrank", options.set).sized(), slimrank.load(options.model)
    model, allocate = Compressible(Decoder(loaded.model)), recipe.allocate
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    spectra = decompose(model, calibrate(model, windows, recipe.needs), recipe, pricing=recipe.pricing)
    cost = Bytes(recipe.form, loaded.dtype.itemsize)
    assert isinstance(allocate, Nats)
    without = allocate.candidates(Problem(1.0, recipe.form, spectra), cost)
    given = Candidates.of(spectra, WithPivots(recipe.form, allocate.pricing, cost), allocate.gain)
    numbers = sum(unit.parameters for unit in spectra.curves)
    for task in todo:
        left = task["bits"] * numbers / 8
        before, after = without.within(left), given.within(left)
        taken = [unit for unit, one in after.items() if isinstance(one, Pivots)]
        yield task | {
            "without": loss_of(spectra, before),
            "given": loss_of(spectra, after),
            "taken": sum(len(unit.names) for unit in taken),
            "joint": sum(len(unit.names) > 1 for unit in taken),
            "linears": sum(len(unit.names) for unit in after),
        }


def loss_of(spectra: Spectra, stored: dict[Unit, Stored]) -> float:
    """The summed predicted loss, of pivots in 8 bits that of the cut."""
    return sum(
        spectra.curve(unit).stored(one.rank, None if isinstance(one, Pivots) else one.grid)
        for unit, one in stored.items()
    )


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
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe slimrank")
    parser.add_argument("--samples", type=rows_of.count, default=32, help="calibration windows")
    parser.add_argument("--window", type=rows_of.count, default=256)
    parser.add_argument("--seed", type=int, default=3)
    rows_of.add_options(parser, jobs=False)
    options = parser.parse_args()
    with rows_of.one_sentence():
        settings: dict[str, Any] = {key: getattr(options, key) for key in ("samples", "window", "seed")}
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
