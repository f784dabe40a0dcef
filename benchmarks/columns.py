"""Whether kept columns would lose less than pivoted storage: predicted nats of every linear at equal cost.

    python benchmarks/columns.py MODEL --calibration train.txt --keep 0.6 --out benchmarks/results/columns.json

Recipe slimrank's plan with nothing joined, and the loss of each of its linears with kept columns (`ColumnsFactorizer`)
at the largest rank that costs no more. Losses are the recipe's metric's, in nats a token.
"""

import argparse
import json
from pathlib import Path

import slimrank
from slimrank import load_recipe
from slimrank.calibrate.evidence import calibrate
from slimrank.factorize.columns import ColumnsFactorizer
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.run.build import target_of
from slimrank.run.steps import allocate, decompose
from slimrank.texts.reading import Reading, read_windows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--keep", type=float, default=0.6)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    recipe, loaded = load_recipe("slimrank", ["form=pivoted"]), slimrank.load(options.model)
    model = Compressible(Decoder(loaded.model))
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    spectra = decompose(model, calibrate(model, windows, recipe.needs), recipe)
    form, rows = ColumnsFactorizer(), []
    for name, linear in allocate(spectra, recipe, options.keep).linears.items():
        if linear.rank is None:
            continue
        target = target_of(spectra, model.units[name])
        columns = form.build(target, form.rank_for([linear.shape], linear.parameters)).loss
        rows.append({"linear": name, "rank": linear.rank, "pivoted": linear.loss, "columns": columns})
        print({key: round(value, 6) if isinstance(value, float) else value for key, value in rows[-1].items()})
    sums = {key: sum(row[key] for row in rows) for key in ("pivoted", "columns")}
    print({key: round(value, 4) for key, value in sums.items()})
    if options.out:
        settings = {key: getattr(options, key) for key in ("samples", "window", "seed", "keep")}
        settings["model"] = Path(options.model).name
        options.out.write_text(json.dumps({"settings": settings, "sums": sums, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
