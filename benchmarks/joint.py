"""Whether linears that share an input would lose less with one factor for all of them: predicted nats at equal cost.

    python benchmarks/joint.py MODEL --calibration train.txt --keep 0.6 --out benchmarks/results/joint.json

For every group of linears with one input (q, k, v; gate, up): the predicted loss of recipe slimrank's plan, each linear
pivoted by itself, and that of the stacked matrix pivoted as one, at the largest rank that costs no more; also that of
kept columns, at the plan's own cost a linear. Losses are the recipe's metric's, in nats a token.
"""

import argparse
import json
from pathlib import Path

import torch

import slimrank
from slimrank import load_recipe
from slimrank.calibrate.reading import Reading, read_windows
from slimrank.factorize.columns import ColumnsFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.metric.grams import square_root, times
from slimrank.model import Decoder
from slimrank.pipeline import calibrate, decompose_all, make_plan
from slimrank.session import Session


def session_of(options):
    recipe, loaded = load_recipe("slimrank"), slimrank.load(options.model)
    decoder = Decoder(loaded.model)
    linears = decoder.linears()
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    moments, held_out = calibrate(decoder, windows, linears, labels=recipe.metric.gradient_labels)
    session = Session(decoder, linears, windows, recipe.metric, recipe.form, options.keep, moments, held_out)
    decompose_all(session)
    return session, make_plan(session, recipe)


def weighed(session, name):
    """L^T W R, whose squared singular values are nats."""
    site = session.site(name)
    grams = session.metric.grams(site)
    left, right = square_root(grams.left)[0], square_root(grams.right)[0]
    return times(right, times(left, site.weight.double()).T).T


def stacked_loss(session, names, budget):
    """Rank and loss of the stacked matrix at the largest rank within the budget."""
    matrix = torch.cat([weighed(session, name) for name in names])
    rank = PivotedFactorizer().rank_for(tuple(matrix.shape), budget)
    return rank, torch.linalg.svdvals(matrix)[rank:].square().sum().item()


def columns_loss(session, name, budget):
    """The loss with kept columns, within the budget."""
    form, target = ColumnsFactorizer(), session.target(name)
    rank = form.rank_for(tuple(target.weight.shape), budget)
    return form.loss(target, rank)


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
    session, plan = session_of(options)
    rows = []
    for block in session.linears:
        groups = {}
        for name in block:
            groups.setdefault(session.moments.leader[name], []).append(name)
        for names in groups.values():
            planned = [plan.linears[name] for name in names]
            if any(linear.rank is None for linear in planned):
                continue
            budget = sum(linear.parameters for linear in planned)
            row = {"linears": names, "ranks": [linear.rank for linear in planned], "numbers": budget}
            row["apart"] = sum(linear.loss for linear in planned)
            row["columns"] = sum(columns_loss(session, one, plan.linears[one].parameters) for one in names)
            if len(names) > 1:
                row["joint rank"], row["joint"] = stacked_loss(session, names, budget)
            rows.append(row)
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
    if options.out:
        settings = {
            key: str(value) for key, value in vars(options).items() if key not in ("out", "model", "calibration")
        }
        settings["model"] = Path(options.model).name
        options.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
