"""Variants of recipes, a name and settings each, on one calibration of one model: what scripts with a table share."""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import recipes as recipe_rows
import rows as rows_of
from rows import Task

from slimrank.errors import UsageError
from slimrank.recipe import Recipe, load_recipe

Variants = Mapping[str, tuple[str, list[str]]]
Report = Callable[[Sequence[dict[str, Any]], Sequence[float]], Iterator[str]]


def chosen(variants: Variants) -> Callable[[str], list[str]]:
    """The parser of a list of variants, or of words that their names begin with."""

    def parse(text: str) -> list[str]:
        found = {part: [name for name in variants if f"{name} ".startswith(f"{part} ")] for part in text.split(",")}
        if unknown := [part for part, names in found.items() if not names]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} begins no variant: --list prints them.")
        wanted = {name for names in found.values() for name in names}
        return [name for name in variants if name in wanted]

    return parse


def recipe(options: argparse.Namespace, variant: str) -> Recipe:
    """A variant as a recipe, its searches as long as the options say."""
    name, settings = options.table[variant]
    numbers = {"TRIALS": options.trials, "WINDOWS": options.windows}
    for word, number in numbers.items():
        settings = [setting.replace(word, str(number)) for setting in settings]
    return load_recipe(name, settings)


def tasks(options: argparse.Namespace) -> list[Task]:
    """A task a variant, keep and seed; what is quick comes first, since the tables have it so, and searches last."""
    slow = [name for name in options.variants if recipe(options, name).allocate.measures]
    ordered = [name for name in options.variants if name not in slow] + slow
    return [
        {"variant": name, "keep": keep, "seed": seed}
        for seed in options.seeds
        for name in ordered
        for keep in options.keeps
    ]


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The tasks' rows."""
    for task, made, row in recipe_rows.measured(options, todo, lambda task: recipe(options, task["variant"])):
        yield task | {"recipe": made.name} | row


def table(found: Sequence[dict[str, Any]], keeps: Sequence[float]) -> Iterator[str]:
    """Markdown, nats lost: a line a variant."""
    texts = list(found[0]["nats_lost"])
    yield (
        "\n| variant | " + " | ".join(f"{text} {keep:g}" for text in texts for keep in keeps) + " | blocks | seconds |"
    )
    yield "|---" * (3 + len(texts) * len(keeps)) + "|"
    for name in dict.fromkeys(row["variant"] for row in found):
        own = [row for row in found if row["variant"] == name]
        cells = [lost(own, name, keep, text) for text in texts for keep in keeps]
        blocks = own[0]["blocks"]
        spread = f"{min(blocks):.2f}-{max(blocks):.2f} at {own[0]['keep']:g}"
        yield f"| {name} | {' | '.join(cells)} | {spread} | {statistics.mean(row['seconds'] for row in own):.0f} |"


def lost(rows: Sequence[dict[str, Any]], name: str, keep: float, text: str) -> str:
    """The mean over seeds of what a variant lost, a dash where it was not run."""
    values = [row["nats_lost"][text] for row in rows if row["variant"] == name and row["keep"] == keep]
    return f"{statistics.mean(values):.3f}" if values else "-"


def main(variants: Variants, description: str | None, prefix: str, report: Report = table) -> None:
    """Measure what is missing and print the tables; prefix: of the file's name by default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    recipe_rows.add_options(parser, recipes=False, out_required=False)
    parser.add_argument("--variants", type=chosen(variants), default=list(variants), help="names, or their beginnings")
    parser.add_argument("--list", action="store_true", help="print the variants and stop")
    parser.add_argument("--trials", type=rows_of.count, default=40, help="of a Bayesian optimisation")
    parser.add_argument("--windows", type=rows_of.count, default=4, help="that each search measures on")
    parser.set_defaults(samples=64, window=512, max_windows=64, text=None, table=dict(variants))
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {base} {' '.join(settings)}" for name, (base, settings) in variants.items()))
        return
    if options.model is None:
        parser.error("give a model, or --list")
    options.text = options.text or ["demo"]
    options.out = options.out or Path(f"{prefix}-{rows_of.named(options.model)}.json")
    limits = {"trials": options.trials, "search_windows": options.windows}
    with rows_of.one_sentence():
        if options.windows > options.samples:
            raise UsageError(f"--windows {options.windows} is more than --samples {options.samples}: lower it.")
        found = rows_of.run(options, tasks(options), measure, recipe_rows.settings(options) | limits)
    print("\n".join(report(found, options.keeps)))
