"""Whether the price of a choice is what it costs: one linear at a time replaced, predicted beside measured KL.

    python benchmarks/unit_prices.py demo --text src/slimrank/demo/text/evaluation.txt --units 42 --out prices.json
    python benchmarks/unit_prices.py MODEL --calibration train.txt --text valid.txt --units 30 --out prices.json

A row a linear and choice: rounded to 8 or 4 bits, or two factors of half its numbers, in floats or in 4 bits. The
price is that of the recipe slimrank, from its calibration; KL(dense || model) is measured in nats a token on the first
windows of another text, all other linears being dense. Linears are taken evenly over blocks, in turns of every type.
"""

import argparse
import math
import random
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import rows as rows_of
from block_scores import correlation
from rows import Task
from torch import Tensor

import slimrank
from slimrank import load_recipe
from slimrank.allocate.measure import Damage
from slimrank.allocate.prices import TOLD
from slimrank.calibrate import read_text
from slimrank.calibrate.evidence import calibrate
from slimrank.evaluate.perplexity import text_windows
from slimrank.forms import Dense
from slimrank.forms.linear import bias_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams, shrunk_
from slimrank.refine.round import Round
from slimrank.rounding.feedback import round_weight
from slimrank.rounding.grid import Grid
from slimrank.rounding.resolve import round_factors
from slimrank.run.steps import decompose
from slimrank.spectrum.spectra import Spectra
from slimrank.texts.reading import Reading, read_windows

HALF = 0.5
CHOICES: dict[str, tuple[float | None, Grid | None]] = {
    "8 bits": (None, Grid(8)),
    "4 bits": (None, Grid(4, 128)),
    "half the numbers": (HALF, None),
    "half the numbers, 4 bits": (HALF, Grid(4, 128)),
}
"""The share of the numbers that two factors have, None for a dense layer, and the grid."""


def sampled(units: Iterable[Unit], count: int, seed: int) -> list[Unit]:
    """So many units, as many of each block as can be, and of each type in turn; all where there are no more."""
    left = list(units)
    roles = list(dict.fromkeys(unit.role for unit in left))
    blocks = list(dict.fromkeys(unit.block for unit in left))
    random.Random(seed).shuffle(roles)
    found = list[Unit]()
    for turn in range(min(count, len(left))):
        block, role = blocks[turn * len(blocks) // count], roles[turn % len(roles)]
        found.append(min(left, key=lambda unit: (abs(unit.block - block), unit.role != role)))
        left.remove(found[-1])
    return found


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The rows, all from one calibration."""
    recipe, loaded = load_recipe("slimrank").sized(), slimrank.load(options.model)
    step = next(step for step in recipe.refine if isinstance(step, Round))
    names = {task["linear"] for task in todo}
    model = Compressible.of(Decoder(loaded.model), lambda name, module: name in names)
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    assert recipe.pricing is not None
    pricing = replace(recipe.pricing, grids=tuple({grid for _, grid in CHOICES.values() if grid is not None}))
    spectra = decompose(model, calibrate(model, windows, recipe.needs), recipe, pricing=pricing)
    ids = text_windows(loaded.tokenizer, read_text(options.text), options.window, options.windows, "none")
    damage = Damage(spectra, ids=ids)
    for task in todo:
        unit = model.units[task["linear"]]
        rank, grid = chosen(task, unit.shape)
        weight = rebuilt(spectra, unit, rank, grid, step).to(model.decoder.dtype)
        layer = Dense.from_dense(weight, bias_of(model.linears[unit.leader]))
        yield task | {
            "shape": list(unit.shape),
            "rank": rank,
            "predicted": spectra.curve(unit).stored(rank, grid),
            "measured": damage.kl_with({unit.leader: layer}) / ids.shape[1],
        }


def chosen(task: Task, shape: tuple[int, int]) -> tuple[int | None, Grid | None]:
    """The rank and grid of a task for W (m, n)."""
    share, grid = CHOICES[task["choice"]]
    rows, columns = shape
    return (None if share is None else max(1, int(share * rows * columns / (rows + columns)))), grid


def rebuilt(spectra: Spectra, unit: Unit, rank: int | None, grid: Grid | None, step: Round) -> Tensor:
    """W' (m, n), float64: cut and rounded as the recipe does it, but on the dense model's inputs."""
    factors = None if rank is None else spectra.cut(unit, rank)
    if grid is None:
        assert factors is not None, "a choice cuts or rounds"
        return factors[0] @ factors[1]
    weight, grams = spectra.weight(unit).double(), spectra.grams(unit)
    assert grams.right is not None
    grams = Grams(grams.left, shrunk_(grams.right, step.shrink))
    if factors is None:
        return round_weight(weight, grid, *step.sides(grams)).weight
    return round_factors(weight, *factors, grams, grid, damping=step.ridge).weight


def table(rows: Sequence[Task]) -> Iterator[str]:
    """Markdown: how well the price orders the linears, and how far it is off where KL can be told from none."""
    yield "\n| choice | linears | rank correlation | measured / predicted | tenth to nine tenths | farthest off |"
    yield "|---" * 6 + "|"
    for choice in [*CHOICES, "all"]:
        own = [row for row in rows if choice in (row["choice"], "all")]
        ratios = {f"{row['linear']}, {row['choice']}": ratio(row) for row in own if row["predicted"] > TOLD}
        far = max(ratios, key=lambda name: abs(math.log(ratios[name])))
        tenths = statistics.quantiles(ratios.values(), n=10, method="inclusive")
        order = correlation([row["predicted"] for row in own], [row["measured"] for row in own])
        cells = [choice, str(len(own)), f"{order:.2f}", f"{statistics.median(ratios.values()):.2f}"]
        cells += [f"{tenths[0]:.2f} to {tenths[-1]:.2f}", f"{far.partition(',')[0]} {ratios[far]:.2f}"]
        yield f"| {' | '.join(cells)} |"


def ratio(row: Task) -> float:
    """Measured over predicted; a KL that float32 can't tell from none is taken as TOLD."""
    return max(row["measured"], TOLD) / row["predicted"]


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    rows_of.add_calibration(parser, "SPEC of the calibration text; needed unless MODEL is demo")
    parser.add_argument("--text", required=True, help="SPEC of the text that is measured on")
    parser.add_argument("--units", type=rows_of.count, default=30, help="linears, evenly over blocks and types")
    parser.add_argument("--samples", type=rows_of.count, default=32, help="calibration windows")
    parser.add_argument("--window", type=rows_of.count, default=512)
    parser.add_argument("--windows", type=rows_of.count, default=4, help="that KL is measured on")
    parser.add_argument("--seed", type=int, default=3)
    rows_of.add_options(parser, jobs=False)
    options = parser.parse_args()
    with rows_of.one_sentence():
        settings: dict[str, Any] = {key: getattr(options, key) for key in ("samples", "window", "windows", "seed")}
        settings |= {
            "model": rows_of.named(options.model),
            "calibration": rows_of.calibrated_on(options.calibration or ["demo"]),
            "text": rows_of.described(read_text(options.text)),
        }
        units = Compressible(Decoder(slimrank.load(options.model).model)).units.values()
        named = [unit.leader for unit in sampled(units, options.units, options.seed)]
        random.Random(options.seed).shuffle(named)  # so that a run that was stopped has rows of all blocks
        tasks = [{"linear": name, "choice": choice} for name in named for choice in CHOICES]
        found = rows_of.run(options, tasks, measure, settings)
    print("\n".join(table(found)))


if __name__ == "__main__":
    main()
