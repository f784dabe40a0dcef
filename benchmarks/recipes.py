"""Recipes at several keeps and seeds, on any model and texts: a JSON file of rows and a table of their means.

    python benchmarks/recipes.py MODEL --calibration train.txt --text test.txt --window 256 --samples 256 \
        --recipes svd,svd-llm --keeps 0.8,0.6 --seeds 3,4,5 --jobs 16 --out benchmarks/results/recipes.json

With one job the model is calibrated once a seed; with several, every row is a process's own compression.
`--recipes all` is every one that ships. Where all rows are in the file already, only the table is printed.
"""

import argparse
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import rows as rows_of
from rows import Task

import slimrank
from slimrank.calibrate import Text, read_text
from slimrank.cli.commands.compare import parse_keeps
from slimrank.errors import UsageError
from slimrank.plan import Plan
from slimrank.recipe import Recipe, load_recipe, settings_by_recipe, shipped_recipes
from slimrank.run.compare import compare
from slimrank.run.rows import Row
from slimrank.texts.reading import Reading

SLOW = ("dipsvd-bo", "duo-svd", "asvd", "svd-llm-lora", "svd-llm-distilled", "slimrank")  # begun first


def measure(options: argparse.Namespace, tasks: list[Task]) -> Iterator[dict[str, Any]]:
    """The tasks' rows."""
    for task, _, row in measured(options, tasks, lambda task: recipe(options, task["recipe"])):
        yield task | row


def measured(
    options: argparse.Namespace, tasks: list[Task], made: Callable[[Task], Recipe]
) -> Iterator[tuple[Task, Recipe, dict[str, Any]]]:
    """Each task with the recipe that is made of it and its figures, those of one seed from one calibration."""
    texts = read_texts(options.text)
    for seed in dict.fromkeys(task["seed"] for task in tasks):
        group = [task for task in tasks if task["seed"] == seed]
        loaded = slimrank.load(options.model, device=options.device, dtype=options.dtype)
        reading = Reading(options.calibration, options.samples, options.window, seed)
        runs = [(made(task), task["keep"]) for task in group]
        found = compare(
            loaded,
            runs,
            texts,
            reading,
            max_windows=options.max_windows,
            special_tokens="text" if options.special_tokens else "none",
        )
        dense = next(found)
        for task, (own, _), row in zip(group, runs, found, strict=True):
            yield task, own, figures(row, dense, texts)


def recipe(options: argparse.Namespace, name: str) -> Recipe:
    """A recipe with the overrides that are meant for it."""
    return load_recipe(name, settings_by_recipe(options.recipes, options.set)[name])


def read_texts(specs: Sequence[str]) -> list[Text]:
    """The texts to evaluate on, whose names must differ, since the rows have them by name."""
    texts = [read_text(spec, part="evaluation") for spec in specs]
    for name, count in Counter(short(text) for text in texts).items():
        if count > 1:
            raise UsageError(f"--text: {count} texts are called {name}: give them files of different names.")
    return texts


def short(text: Text) -> str:
    """A text's name in the rows: its SPEC without folders."""
    return text.source.rpartition("/")[2]


def figures(row: Row, dense: Row, texts: Sequence[Text]) -> dict[str, Any]:
    """What a row measured, as JSON."""
    names = {text.source: short(text) for text in texts}
    return {
        "perplexity": {names[text]: round(found.perplexity, 3) for text, found in row.texts.items()},
        "nats_lost": {names[text]: round(found.nats - dense.texts[text].nats, 5) for text, found in row.texts.items()},
        "kept": round(row.linears / dense.linears, 5),
        "parameters": row.parameters,
        "bytes": row.bytes,
        "seconds": round(row.seconds, 1),
        "blocks": block_shares(row.plan),
        "notes": [note for note in row.plan.notes if "/" not in note],
    }


def block_shares(plan: Plan) -> list[float]:
    """The share of its parameters that each block keeps."""
    blocks = plan.blocks().values()
    dense = [sum(one.shape[0] * one.shape[1] for one in block.values()) for block in blocks]
    return [
        round(sum(one.parameters for one in block.values()) / whole, 4)
        for block, whole in zip(blocks, dense, strict=True)
    ]


def table(found: Sequence[dict[str, Any]], keeps: Sequence[float]) -> Iterator[str]:
    """Markdown: a line a recipe, per text and keep the mean perplexity over seeds and the seeds' range."""
    texts = list(found[0]["perplexity"])
    columns = [(text, keep) for text in texts for keep in keeps]
    yield "| recipe | " + " | ".join(f"{text} {keep:g}" for text, keep in columns) + " | seconds |"
    yield "|---" * (len(columns) + 2) + "|"
    for name in dict.fromkeys(row["recipe"] for row in found):
        own = [row for row in found if row["recipe"] == name]
        cells = [cell([row["perplexity"][text] for row in own if row["keep"] == keep]) for text, keep in columns]
        yield f"| {name} | " + " | ".join(cells) + f" | {statistics.mean(row['seconds'] for row in own):.0f} |"


def dense_perplexity(row: dict[str, Any], text: str) -> float:
    """The dense model's, from what a row lost."""
    return math.exp(math.log(row["perplexity"][text]) - row["nats_lost"][text])


def cell(values: Sequence[float]) -> str:
    """The mean, and where there are several values half of their range."""
    if not values:
        return "-"
    half = f" ± {(max(values) - min(values)) / 2:.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{half}"


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What all rows depend on."""
    return {
        "model": rows_of.named(options.model),
        "calibration": rows_of.calibrated_on(options.calibration or ["demo"]),
        "samples": options.samples,
        "window": options.window,
        "texts": [rows_of.described(text) for text in read_texts(options.text)],
        "max_windows": options.max_windows,
        "special_tokens": options.special_tokens,
        **({"set": options.set} if "set" in options else {}),
        "device": options.device,
        "dtype": options.dtype,
    }


def tasks(options: argparse.Namespace) -> list[Task]:
    """A task a recipe, keep and seed, the slow recipes first."""
    names = sorted(options.recipes, key=lambda name: SLOW.index(name) if name in SLOW else len(SLOW))
    return [
        {"recipe": name, "keep": keep, "seed": seed}
        for name in names
        for keep in options.keeps
        for seed in options.seeds
    ]


def keeps(text: str) -> list[float]:
    """The parser of a list such as 0.8,0.6."""
    try:
        return parse_keeps(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def seeds(text: str) -> list[int]:
    """The parser of a list such as 3,4,5."""
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """The parser of a list of recipes."""
    return list(shipped_recipes()) if text == "all" else text.split(",")


def add_options(parser: argparse.ArgumentParser, *, recipes: bool = True, out_required: bool = True) -> None:
    """What to measure and how, for every benchmark that measures recipes; recipes: whether the user names them."""
    if recipes:
        parser.add_argument("--recipes", type=names, default=["svd-llm"])
        parser.add_argument("--set", action="append", default=[], metavar="[RECIPE:]KEY=VALUE")
    parser.add_argument("--keeps", type=keeps, default=[0.8, 0.6])
    parser.add_argument("--seeds", type=seeds, default=[3])
    rows_of.add_calibration(parser, "SPEC of the text; needed unless MODEL is demo")
    parser.add_argument("--text", action="append", help="SPEC to evaluate on; may be repeated")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--max-windows", type=int, default=256)
    parser.add_argument("--special-tokens", action="store_true", help="evaluate with the tokenizer's default ones")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    rows_of.add_options(parser, out_required=out_required)


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    add_options(parser)
    options = parser.parse_args()
    options.text = options.text or ["demo"]
    with rows_of.one_sentence():
        for name in options.recipes:
            recipe(options, name)
        found = rows_of.run(options, tasks(options), measure, settings(options))
    found.sort(key=lambda row: options.recipes.index(row["recipe"]))
    print("\n".join(table(found, options.keeps)))


if __name__ == "__main__":
    main()
