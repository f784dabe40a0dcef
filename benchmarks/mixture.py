"""What recipes lose of a trained mixture of experts, and what dropping its least used experts to the same size loses.

    python scripts/train_mixture.py --out out/mixture
    python benchmarks/mixture.py out/mixture/model --out benchmarks/results/mixture.json

Both read the demo's texts by default, which the mixture was never trained on. Dropped are the experts that the fewest
calibration tokens are routed to, over the network ("least used experts dropped") or as many in every layer ("... by
layer"), each layer keeping as many as a token chooses; the router then chooses among those that are left.
"""

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import recipes as recipe_rows
import rows as rows_of
from dropping import drop_least_used
from real_rows import figures, rounded
from rows import Task

import slimrank
from slimrank.calibrate import Text
from slimrank.evaluate import perplexities, text_json
from slimrank.evaluate.models import linear_parameters, stored_bytes
from slimrank.evaluate.reference import reference_of
from slimrank.evaluate.results import count_parameters
from slimrank.model.load import Loaded
from slimrank.recipe import load_recipe
from slimrank.run.compare import compare
from slimrank.texts.reading import Reading, read_windows

RECIPES = ["svd-llm", "svd-llm-v2", "duo-svd", "slimrank"]
DROPPED = {"least used experts dropped": False, "least used experts dropped by layer": True}  # by_layer
ORDER = [*RECIPES, *DROPPED]


def measure(options: argparse.Namespace, tasks: list[Task]) -> Iterator[Task]:
    """The tasks' rows, those of one seed from one calibration."""
    texts = recipe_rows.read_texts(options.text)
    judging = {"max_windows": options.max_windows, "special_tokens": "none"}
    for seed in dict.fromkeys(task["seed"] for task in tasks):
        group = [task for task in tasks if task["seed"] == seed]
        reading = Reading(options.calibration, options.samples, options.window, seed)
        recipes = [task for task in group if task["recipe"] in options.recipes]
        loaded = slimrank.load(options.model)
        runs = [(load_recipe(task["recipe"], task["settings"]), task["keep"]) for task in recipes]
        found = compare(loaded, runs, texts, reading, **judging)
        dense = next(found)
        for task in [task for task in group if task["recipe"] == "dense"]:
            yield task | figures(dense, dense, texts)
        for task, row in zip(recipes, found, strict=True):
            yield task | figures(row, dense, texts)
        for task in [task for task in group if task["recipe"] in DROPPED]:
            yield task | dropped(options, loaded, reading, texts, task)


def dropped(
    options: argparse.Namespace, dense: Loaded, reading: Reading, texts: list[Text], task: Task
) -> dict[str, Any]:
    """The figures of a model whose least used experts are dropped."""
    loaded, first = slimrank.load(options.model), reference_of(dense.model)
    judging = {"max_windows": options.max_windows, "special_tokens": "none", "window": options.window, "first": first}
    before = perplexities(dense, texts, is_first=True, **judging)
    started = time.perf_counter()
    windows = read_windows(loaded, reading).calibration
    left = drop_least_used(loaded, windows, task["keep"], by_layer=DROPPED[task["recipe"]])
    seconds = time.perf_counter() - started
    after, names = perplexities(loaded, texts, **judging), {text.source: recipe_rows.short(text) for text in texts}
    measured = {names[text]: text_json(found, before[text]) for text, found in after.items()}
    return {
        "texts": {text: {key: rounded(value) for key, value in found.items()} for text, found in measured.items()},
        "kept": rounded(linear_parameters(loaded) / linear_parameters(dense)),
        "parameters": count_parameters(loaded.model),
        "bytes": stored_bytes(loaded.model, loaded.dtype),
        "seconds": round(seconds, 1),
        "experts": [len(own) for own in left.values()],
    }


def tasks(options: argparse.Namespace) -> list[Task]:
    """The dense model's row, then one for each recipe and way of dropping, keep and seed."""
    part = {"part": "texts", "max_windows": options.max_windows}
    runs = [("dense", 1.0), *((name, keep) for name in (*options.recipes, *DROPPED) for keep in options.keeps)]
    return [{"recipe": r, "keep": k, "seed": s, "settings": []} | part for s in options.seeds for r, k in runs]


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all rows depend on."""
    trained = Path(options.model).parent / "training.json"
    return {
        "model": rows_of.named(str(Path(options.model).parent)),
        "training": json.loads(trained.read_text()) if trained.exists() else {},
        "calibration": rows_of.calibrated_on(options.calibration),
        "samples": options.samples,
        "window": options.window,
        "texts": [rows_of.described(text) for text in recipe_rows.read_texts(options.text)],
    }


def main() -> None:
    """Measure what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder that train_mixture.py wrote")
    rows_of.add_calibration(parser, "SPEC of the text, by default the demo's")
    parser.add_argument("--text", action="append", help="SPEC to judge on, by default the demo's")
    parser.add_argument("--recipes", type=recipe_rows.names, default=RECIPES)
    parser.add_argument("--keeps", type=recipe_rows.keeps, default=[0.8, 0.6, 0.4])
    parser.add_argument("--seeds", type=recipe_rows.seeds, default=[3])
    parser.add_argument("--samples", type=rows_of.count, default=64, help="calibration windows")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-windows", type=rows_of.count, default=64, help="windows judged of each text")
    rows_of.add_options(parser, jobs=False)
    options = parser.parse_args()
    options.calibration, options.text = options.calibration or ["demo"], options.text or ["demo"]
    with rows_of.one_sentence():
        rows_of.run(options, tasks(options), measure, settings(options))


if __name__ == "__main__":
    main()
