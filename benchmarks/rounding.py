"""What each step of rounding brings, on a model's linears: the loss that rounding adds, and what was predicted of it.

    python benchmarks/rounding.py MODEL --calibration train.txt --out rounding.json
    python benchmarks/rounding.py MODEL --calibration train.txt --bits 3 --share 0.3 --blocks 1,2 --out rounding.json

A row a linear. It is rounded as it is, and as two factors of `--share` of its parameters, with Grams of one half of the
calibration windows; the loss tr(G E H E^T) is taken on these Grams ("own") and on those of the other half ("other").
Of factors the loss of the same cut in floats is subtracted.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import rows as rows_of
import torch
from rows import Task

import slimrank
from slimrank import load_recipe
from slimrank.calibrate.evidence import calibrate
from slimrank.forms.linear import weight_of
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.numerics.grams import Grams, shrunk_, squared_error
from slimrank.rounding.feedback import Factor, round_weight
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Weights, dense_price, factors_price
from slimrank.rounding.resolve import round_factors
from slimrank.spectrum.decomposition import decompose_weight
from slimrank.spectrum.spectra import Spectra
from slimrank.texts.reading import Reading, read_windows
from slimrank.texts.windows import Windows

Way = dict[str, bool]
DENSE: dict[str, Way] = {
    "nearest": {"feedback": False, "two_sided": False},
    "inputs": {"two_sided": False},
    "both": {"two_sided": True},
}
FACTORS = {
    "nearest": {"feedback": False, "two_sided": False, "resolve": False},
    "nearest, U again": {"feedback": False, "two_sided": False},
    "inputs": {"two_sided": False, "resolve": False},
    "inputs, U again": {"two_sided": False},
    "both, U again": {"two_sided": True},
}
RIDGE, SHRINK = 0.01, 0.05


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The rows."""
    recipe, loaded = load_recipe("slimrank"), slimrank.load(options.model)
    model = Compressible(Decoder(loaded.model))
    whole = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    halves = whole.calibration.chunk(2)
    own, other = (
        Spectra(model, calibrate(model, Windows(half, whole.held_out, whole.record), recipe.needs), recipe.metric)
        for half in halves
    )
    for task in todo:
        unit = model.units[task["linear"]]
        weight, judge = weight_of(model.linears[unit.leader]).detach().double(), other.grams(unit)
        grams = own.grams(unit)
        assert grams.right is not None
        grams = Grams(grams.left, shrunk_(grams.right, SHRINK))
        yield task | {"shape": list(unit.shape)} | losses(weight, grams, judge, options)


def losses(weight: torch.Tensor, grams: Grams, judge: Grams, options: argparse.Namespace) -> dict[str, Any]:
    """Of a weight rounded in each way, and predicted."""
    grid, (rows, columns) = Grid(options.bits, options.group), weight.shape
    rank = max(1, int(options.share * rows * columns / (rows + columns)))
    cut = decompose_weight(weight, grams)
    plain = cut.left[:, :rank] @ cut.right[:rank]

    def both(
        made: Callable[[dict[str, bool]], torch.Tensor], ways: dict[str, dict[str, bool]], base: torch.Tensor
    ) -> Any:
        found: dict[str, dict[str, float]] = {"own": {}, "other": {}}
        for way, how in ways.items():
            error = made(how) - weight
            for name, by in (("own", grams), ("other", judge)):
                found[name][way] = squared_error(error, by) - squared_error(base - weight, by)
        return found

    def dense(how: Way) -> torch.Tensor:
        left, right = (grams.left if how["two_sided"] else None), grams.right
        assert right is not None and not hasattr(left, "sizes")
        if not how.get("feedback", True):
            return round_weight(weight, grid, right=Factor.of(right.diagonal())).weight
        return round_weight(weight, grid, Factor.of(left, RIDGE), Factor.of(right, RIDGE)).weight  # type: ignore[arg-type]

    def factors(how: Way) -> torch.Tensor:
        return round_factors(weight, *cut.cut(rank), grams, grid, damping=RIDGE, **how).weight

    predicted = {}
    for way, two_sided in (("inputs", False), ("both", True)):
        weights = Weights.of(grams.left, grams.right, two_sided=two_sided, damping=RIDGE)
        predicted[way] = {
            "dense": dense_price(weight, grid, weights),
            "factors": factors_price(cut.left, cut.right, grid, weights, grams.right)[rank].item(),
        }
    made = {"dense": both(dense, DENSE, weight), "factors": both(factors, FACTORS, plain)}
    return {"rank": rank, **made, "predicted": predicted, "cut": squared_error(plain - weight, judge)}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown: sums over the linears, each way's over that of feedback along the inputs."""
    for kind, ways, base in (("dense", DENSE, "inputs"), ("factors", FACTORS, "inputs")):
        yield f"\n| {kind} | own Grams | other Grams | predicted over own |\n|---|---|---|---|"
        for way in ways:
            sums = {by: sum(row[kind][by][way] for row in rows) for by in ("own", "other")}
            bases = {by: sum(row[kind][by][base] for row in rows) for by in ("own", "other")}
            key = {"inputs": "inputs", "both": "both", "inputs, U again": "inputs", "both, U again": "both"}.get(way)
            priced = "" if key is None else f"{sum(row['predicted'][key][kind] for row in rows) / sums['own']:.2f}"
            yield f"| {way} | " + " | ".join(f"{sums[by] / bases[by]:.3f}" for by in sums) + f" | {priced} |"


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    rows_of.add_calibration(parser, "SPEC of the calibration text")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--share", type=float, default=0.5, help="of the parameters, that the factors have")
    parser.add_argument("--blocks", type=lambda text: [int(part) for part in text.split(",")], help="a,b; default all")
    parser.add_argument("--samples", type=rows_of.count, default=64, help="calibration windows, both halves together")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--seed", type=int, default=3)
    rows_of.add_options(parser, jobs=False)
    options = parser.parse_args()
    with rows_of.one_sentence():
        keys = ("bits", "group", "share", "samples", "window", "seed")
        settings: dict[str, Any] = {key: getattr(options, key) for key in keys}
        settings |= {"model": rows_of.named(options.model), "ridge": RIDGE, "shrink": SHRINK}
        settings["calibration"] = rows_of.calibrated_on(options.calibration or ["demo"])
        units = Compressible(Decoder(slimrank.load(options.model).model)).units
        named = [name for name, unit in units.items() if options.blocks is None or unit.block in options.blocks]
        for line in table(rows_of.run(options, [{"linear": name} for name in named], measure, settings)):
            print(line)


if __name__ == "__main__":
    main()
