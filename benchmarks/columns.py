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
from slimrank.factorize.columns import ColumnsFactorizer
from slimrank.model.decoder import Decoder
from slimrank.run.pipeline import calibrate, decompose_all, make_plan
from slimrank.run.session import Session
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
    decoder = Decoder(loaded.model)
    linears = decoder.linears()
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    moments, held_out = calibrate(decoder, windows, linears, labels=recipe.metric.gradient_labels)
    session = Session(decoder, linears, windows, recipe.metric, recipe.form, options.keep, moments, held_out)
    decompose_all(session)
    form, rows = ColumnsFactorizer(), []
    for name, linear in make_plan(session, recipe).linears.items():
        if linear.rank is None:
            continue
        target = session.target(name)
        columns = form.loss(target, form.rank_for(linear.shape, linear.parameters))
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
