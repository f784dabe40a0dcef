"""What one factor for all experts of a layer is predicted to lose, beside factors of their own of the same size.

    python benchmarks/shared_factors.py out/mixture/model --out benchmarks/results/shared-factors.json

For each layer and each of an expert's two matrices the least predicted loss, in nats a token, of the options that cost
at most a share of the dense parameters: `alone`, any rank for each expert in the recipe's form, and `shared`, one input
factor for all experts' first matrices or one output factor for all their second.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import recipes as recipe_rows
import rows

from slimrank.allocate import Problem
from slimrank.allocate.choices import sums
from slimrank.allocate.nats import alone, together
from slimrank.calibrate.evidence import calibrate
from slimrank.model.compressible import Compressible
from slimrank.recipe import load_recipe
from slimrank.run.job import opened
from slimrank.run.steps import decompose
from slimrank.runtime.memory import Limits
from slimrank.texts.reading import Reading, read_windows


def main() -> None:
    """Measure a row for each share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    rows.add_calibration(parser, "SPEC of the text, by default the demo's")
    parser.add_argument("--keeps", type=recipe_rows.keeps, default=[0.8, 0.6, 0.4, 0.2])
    parser.add_argument("--recipe", default="slimrank")
    parser.add_argument("--samples", type=rows.count, default=64)
    parser.add_argument("--window", type=int, default=512)
    rows.add_options(parser, jobs=False)
    options = parser.parse_args()
    options.calibration = options.calibration or ["demo"]
    settings = {
        "model": rows.named(str(Path(options.model).parent)),
        "calibration": rows.calibrated_on(options.calibration),
        "samples": options.samples,
        "window": options.window,
        "recipe": options.recipe,
    }
    with rows.one_sentence():
        rows.run(options, [{"keep": keep} for keep in options.keeps], measure, settings)


def measure(options: argparse.Namespace, tasks: list[rows.Task]) -> Iterator[rows.Task]:
    """The row of each share: both losses by unit, and the shared factor's over the others'."""
    loaded, decoder = opened(
        options.model, device="cpu", dtype="float32", limits=Limits.of(None, "cpu"), from_disk=False
    )
    recipe, model = load_recipe(options.recipe, ["form.shared=true"]), Compressible.of(decoder)
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, 3))
    spectra = decompose(model, calibrate(model, windows, recipe.needs), recipe)
    problem = Problem(1.0, recipe.form, spectra)
    losses = {unit: curve.losses().numpy() for unit, curve in {**spectra.curves, **spectra.stacks}.items()}
    units = [unit for unit in spectra.stacks if unit.shared]
    both = {
        unit: {
            "alone": sums([alone(problem, model.units[name], losses) for name in unit.names]),
            "shared": together(problem, unit, losses, 0.0),
        }
        for unit in units
    }
    for task in tasks:
        found = {}
        for unit, options_of in both.items():
            room = task["keep"] * unit.parameters
            least = {
                name: min(loss for cost, loss in zip(one.costs, one.losses, strict=True) if cost <= room)
                for name, one in options_of.items()
            }
            times = round(float(least["shared"] / least["alone"]), 2)
            found[unit.key] = {name: float(f"{loss:.4g}") for name, loss in least.items()} | {"times": times}
        times = [one["times"] for one in found.values()]
        yield task | {"least_times": min(times), "most_times": max(times), "units": found}


if __name__ == "__main__":
    main()
