"""What a checkpoint of a size loses: slimrank's plans of rank and bits beside GPTQ at one width, from one calibration.

    python benchmarks/bytes.py MODEL --calibration train.txt --text test.txt --sizes 90MB,75MB --out bytes.json

A row a size or width: nats lost and KL on every text, the file's bytes, and for slimrank what was predicted.
GPTQ rounds every linear alone, to `--gptq` BITS:GROUP; embedding and head have 8 bits in every row of the table.
With --scales every row is there once more with `refine.scales` behind it.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import rows as rows_of
from rows import Task

import slimrank
from slimrank import load_recipe
from slimrank.budget.asked import budget_of, checked_budget
from slimrank.calibrate import read_text
from slimrank.calibrate.evidence import Evidence, calibrate
from slimrank.calibrate.needs import Needs
from slimrank.checkpoint.size import Spec, file_bytes
from slimrank.evaluate import Reference, perplexities
from slimrank.evaluate.results import text_json
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import Recipe
from slimrank.run.comparison import dense_afterwards
from slimrank.run.steps import allocate, decompose, factorize, refine
from slimrank.runtime.memory import parse_size
from slimrank.spectrum.spectra import Spectra
from slimrank.store.run import Run
from slimrank.texts.reading import Reading, read_windows


def tasks(options: argparse.Namespace) -> list[Task]:
    """A row a size and list of widths, and one for each width of GPTQ."""
    sized = [{"method": "slimrank", "size": size, "set": options.set} for size in options.sizes]
    plain = sized + [{"method": "gptq", "grid": grid, "set": []} for grid in options.gptq]
    return plain + [task | {"scales": options.scales} for task in plain if options.scales]


def recipe_of(task: Task) -> Recipe:
    """The recipe of a row."""
    if task["method"] == "slimrank":
        recipe = load_recipe("slimrank", task["set"]).sized()
    else:
        bits, _, group = task["grid"].partition(":")
        recipe = load_recipe("gptq", [f"refine.round.{key}" for key in (f"bits={bits}", f"group={group}", "ends=8")])
    if "scales" not in task:
        return recipe
    return load_recipe(recipe.refined("scales"), [f"refine.scales.tokens={task['scales']}"])


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The rows, all from one calibration; the spectra of one metric are shared."""
    loaded = slimrank.load(options.model)
    model = Compressible(Decoder(loaded.model))
    reading = Reading(options.calibration, options.samples, options.window, options.seed)
    windows, recipes = read_windows(loaded, reading), [recipe_of(task) for task in todo]
    needs = Needs(ends=True)
    for recipe in recipes:
        needs |= recipe.needs
    evidence = calibrate(model, windows, needs)
    texts = [read_text(spec) for spec in options.text]
    first = Reference(model.decoder)
    judging = {"max_windows": options.max_windows, "special_tokens": "text", "window": options.window, "first": first}
    dense = perplexities(loaded, texts, is_first=True, **judging)
    known: dict[str, Spectra] = {}
    for task, recipe in zip(todo, recipes, strict=True):
        if task["method"] not in known:
            known[task["method"]] = spectra_of(model, evidence, recipe, task)
        spectra = known[task["method"]]
        started = time.perf_counter()
        with dense_afterwards(model):
            size = parse_size(task["size"], "--sizes") if "size" in task else None
            budget = budget_of(model, recipe, None, loaded.dtype, checked_budget(None, size, None), Run())
            plan = allocate(spectra, recipe, 1.0, budget=budget)
            plan = refine(spectra, factorize(spectra, plan))
            seconds = time.perf_counter() - started
            found = perplexities(loaded, texts, **judging)
            specs = {
                name: Spec(tuple(tensor.shape), loaded.dtype if tensor.is_floating_point() else tensor.dtype)
                for name, tensor in loaded.model.state_dict(keep_vars=True).items()
                if name not in tied(loaded.model)
            }
            row = {
                "bytes": file_bytes(specs),
                "predicted": plan.predicted if size else None,
                "ends": plan.ends,
                "seconds": round(seconds, 1),
                "stored": plan.notes[0] if size else None,
                "notes": [note for note in plan.notes if "Held-out" in note],
                "texts": {Path(name).name: text_json(one, dense[name]) for name, one in found.items()},
            }
        yield task | row | {"lost": {name: one["nats_lost"] for name, one in row["texts"].items()}}


def spectra_of(model: Compressible, evidence: Evidence, recipe: Recipe, task: Task) -> Spectra:
    """The spectra of a row's metric, priced where its plan needs prices."""
    return decompose(model, evidence, recipe, pricing=recipe.pricing if "size" in task else None)


def tied(model: Any) -> set[str]:
    """Names of tensors that are stored under another one."""
    own = {name for name, _ in model.named_parameters()}
    return {name for name, tensor in model.named_parameters(remove_duplicate=False) if name not in own}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown, by size."""
    texts = list(rows[0]["texts"])
    yield f"\n| method | MB | predicted nats | {' | '.join(f'{text}: nats, KL' for text in texts)} |"
    yield "|---" * (3 + len(texts)) + "|"
    for row in sorted(rows, key=lambda row: -row["bytes"]):
        name = row["method"] if row["method"] == "slimrank" else f"gptq {row['grid']}"
        name += f", scales trained on {row['scales']:,} tokens" if "scales" in row else ""
        cells = [f"{one['nats_lost']:.4f}, {one['kl']:.4f}" for one in row["texts"].values()]
        predicted = "" if row["predicted"] is None else f"{row['predicted']:.4f}"
        yield f"| {name} | {row['bytes'] / 1e6:.2f} | {predicted} | {' | '.join(cells)} |"


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL")
    rows_of.add_windows(parser)
    parser.add_argument("--sizes", type=lambda text: text.split(","), default=[], help="of slimrank's rows, a,b")
    parser.add_argument("--gptq", type=lambda text: text.split(","), default=[], help="BITS:GROUP of its rows, a,b")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of slimrank's recipe")
    parser.add_argument("--scales", type=rows_of.count, metavar="TOKENS", help="every row once more, scales trained")
    rows_of.add_options(parser, jobs=False)
    options = parser.parse_args()
    with rows_of.one_sentence():
        for line in table(rows_of.run(options, tasks(options), measure, rows_of.windows_settings(options))):
            print(line)


if __name__ == "__main__":
    main()
