"""Each paper's method taken apart: its parts alone and crossed with each other, from one calibration of one model.

    python benchmarks/papers_apart.py MODEL --calibration train.txt --text test.txt --device cuda --out FILE
    python benchmarks/papers_apart.py MODEL ... --variants svd-llm,duo-svd        # names, or their beginnings

DipSVD's channel weights (none, paper, released, auto) are crossed with ways to share out the budget (uniform, its
heuristic in both directions, its Bayesian optimisation); of SVD-LLM V2, Duo-SVD, CPSVD and ASVD the allocation and what
makes the factors are run without each other. --list prints the variants. Searches take --trials and --windows.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import recipes as recipe_rows
import rows as rows_of
from rows import Task

import slimrank
from slimrank.calibrate.reading import Reading
from slimrank.compare import compare
from slimrank.errors import UsageError
from slimrank.recipe import Recipe, load_recipe

WEIGHTS = {
    "none": ["metric=whitened"],
    "paper": ["metric.variant=paper"],
    "released": ["metric.variant=released"],
    "auto": ["metric.gain=auto"],
}
SHARES = {
    "uniform": ["allocate=uniform"],
    "released": ["allocate.direction=released"],
    "paper": ["allocate.direction=paper"],
    "bayes": ["allocate={name: bayes, trials: TRIALS, windows: WINDOWS}"],
}
CROSS = {
    f"dipsvd {weights} {shares}": ("dipsvd", [*metric, *allocate])
    for weights, metric in WEIGHTS.items()
    for shares, allocate in SHARES.items()
}
HEURISTIC = {
    "paper spread 0.1": ["allocate.direction=paper", "allocate.spread=0.1"],
    "paper spread 0.05": ["allocate.direction=paper", "allocate.spread=0.05"],
    "released spread 0.1": ["allocate.direction=released", "allocate.spread=0.1"],
    "released segments": ["allocate.direction=released", "allocate.segments=4"],
    "paper fisher": ["allocate.direction=paper", "allocate.sensitivity=fisher"],
    "released fisher": ["allocate.direction=released", "allocate.sensitivity=fisher"],
    "sensitivity alone": ["allocate.direction=paper", "allocate.beta=1"],
    "rank alone": ["allocate.direction=paper", "allocate.beta=0"],
}
MEASURED = "allocate.windows=WINDOWS"
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "svd-llm": ("svd-llm", []),
    "svd-llm-v2": ("svd-llm-v2", []),
    "svd-llm-v2 allocation": ("svd-llm-v2", ["metric.route=projector"]),
    "svd-llm-v2 truncation": ("svd-llm-v2", ["allocate=uniform"]),
    "cpsvd allocation": ("cpsvd-shares", []),
    "cpsvd allocation of blocks": ("cpsvd-shares", ["allocate.modules=false"]),
    **{f"dipsvd none {name}": ("dipsvd", ["metric=whitened", *settings]) for name, settings in HEURISTIC.items()},
    **CROSS,
    "asvd metric": ("asvd", ["allocate=uniform"]),
    "cpsvd": ("cpsvd", []),
    "duo-svd columns": ("duo-svd", ["allocate=uniform"]),
    "duo-svd allocation": ("duo-svd", ["form=low_rank", MEASURED]),
    "duo-svd": ("duo-svd", [MEASURED]),
    "asvd allocation": ("asvd", ["metric=whitened", MEASURED]),
    "asvd": ("asvd", [MEASURED]),
}


def chosen(text: str) -> list[str]:
    """The parser of a list of variants, or of words that their names begin with."""
    found = {part: [name for name in VARIANTS if f"{name} ".startswith(f"{part} ")] for part in text.split(",")}
    if unknown := [part for part, names in found.items() if not names]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} begins no variant: --list prints them.")
    wanted = {name for names in found.values() for name in names}
    return [name for name in VARIANTS if name in wanted]


def recipe(options: argparse.Namespace, variant: str) -> Recipe:
    """A variant as a recipe, its searches as long as the options say."""
    name, settings = VARIANTS[variant]
    numbers = {"TRIALS": options.trials, "WINDOWS": options.windows}
    for word, number in numbers.items():
        settings = [setting.replace(word, str(number)) for setting in settings]
    return load_recipe(name, settings)


def tasks(options: argparse.Namespace) -> list[Task]:
    """A task a variant, keep and seed; what is quick comes first, since VARIANTS have it so, and searches last."""
    slow = [name for name in options.variants if recipe(options, name).allocate.whole_model]
    ordered = [name for name in options.variants if name not in slow] + slow
    return [
        {"variant": name, "keep": keep, "seed": seed}
        for seed in options.seeds
        for name in ordered
        for keep in options.keeps
    ]


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The tasks' rows, those of one seed from one calibration."""
    texts = recipe_rows.read_texts(options.text)
    for seed in dict.fromkeys(task["seed"] for task in todo):
        group = [task for task in todo if task["seed"] == seed]
        loaded = slimrank.load(options.model, device=options.device, dtype=options.dtype)
        reading = Reading(options.calibration, options.samples, options.window, seed)
        runs = [(recipe(options, task["variant"]), task["keep"]) for task in group]
        found = compare(
            loaded, runs, texts, reading, max_windows=options.max_windows, special_tokens=options.special_tokens
        )
        dense = next(found)
        for task, (made, _), row in zip(group, runs, found, strict=True):
            yield task | {"recipe": made.name} | recipe_rows.figures(row, dense, texts)


def report(found: Sequence[dict[str, Any]], keeps: Sequence[float]) -> Iterator[str]:
    """Markdown, nats lost: DipSVD's cross for each text and keep, then a line a variant."""
    rows = [row | {"variant": "dipsvd none uniform"} if row["variant"] == "svd-llm" else row for row in found]
    texts = list(found[0]["nats_lost"])
    if sum(row["variant"] in CROSS for row in rows) > 1:
        for text in texts:
            yield f"\nDipSVD on {text}, nats lost: channel weights down, shares across\n"
            yield "| weights | " + " | ".join(f"{shares} {keep:g}" for keep in keeps for shares in SHARES) + " |"
            yield "|---" * (1 + len(keeps) * len(SHARES)) + "|"
            for weights in WEIGHTS:
                names = [f"dipsvd {weights} {shares}" for shares in SHARES]
                cells = [lost(rows, name, keep, text) for keep in keeps for name in names]
                yield f"| {weights} | " + " | ".join(cells) + " |"
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


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    recipe_rows.add_options(parser, recipes=False, out_required=False)
    parser.add_argument("--variants", type=chosen, default=list(VARIANTS), help="names, or their beginnings")
    parser.add_argument("--list", action="store_true", help="print the variants and stop")
    parser.add_argument("--trials", type=rows_of.count, default=40, help="of the Bayesian optimisation")
    parser.add_argument("--windows", type=rows_of.count, default=4, help="that each search measures on")
    parser.set_defaults(samples=64, window=512, max_windows=64, text=None)
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name}: {base} {' '.join(settings)}" for name, (base, settings) in VARIANTS.items()))
        return
    if options.model is None:
        parser.error("give a model, or --list")
    options.text = options.text or ["demo"]
    options.out = options.out or Path(f"papers-apart-{rows_of.named(options.model)}.json")
    limits = {"trials": options.trials, "search_windows": options.windows}
    with rows_of.one_sentence():
        if options.windows > options.samples:
            raise UsageError(f"--windows {options.windows} is more than --samples {options.samples}: lower it.")
        found = rows_of.run(options, tasks(options), measure, recipe_rows.settings(options) | limits)
    print("\n".join(report(found, options.keeps)))


if __name__ == "__main__":
    main()
