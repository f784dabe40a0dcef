"""Every recipe on a real model: perplexity, nats lost, KL and zero-shot tasks, row by row into one JSON file.

    python benchmarks/real.py --calibration wiki.train.tokens --text wiki.test.tokens --text c4.jsonl --device cuda
    python benchmarks/real.py --cpu-share --tasks-path tasks  # keep 0.8 alone, half the windows, 100 documents a task
    python benchmarks/real.py --merge one.json other.json     # what several processes have measured, into --out
    python benchmarks/real.py --table

MODEL is a directory or a .gguf file, by default the SmolLM2-135M-Instruct that smollm2.py makes; texts are by default
WikiText-2 and a part of C4 from the hub. What --out has already is not measured again, and a row may come in parts:
its texts, and each of its tasks, so that a run with tasks completes the rows of one without. Searches run at a share of
their papers' effort (EFFORT), which the rows record. With --progress a row that was stopped goes on where it was.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import papers
import real_rows
import recipes as recipe_rows
import rows as rows_of
import smollm2
from real_table import table
from rows import Task

from slimrank.calibrate import read_text
from slimrank.errors import MissingLibrary, SlimrankError, UsageError
from slimrank.evaluate.tasks import Tasks
from slimrank.recipe import Recipe, load_recipe, settings_by_recipe, shipped_recipes

EFFORT = {  # recipe: option, here, in the paper
    "asvd": [("allocate.windows", 4, 32)],
    "duo-svd": [("allocate.windows", 4, 32)],
    "dipsvd-bo": [("allocate.trials", 40, 180), ("allocate.windows", 8, 128)],
}
CHEAP_FIRST = (
    "svd", "svd-llm", "fwsvd", "svd-llm-v2", "cpsvd-shares", "cpsvd", "dipsvd", "svd-llm-update", "slimrank",
    "svd-llm-lora", "svd-llm-distilled", "slimrank-refined", *EFFORT,
)  # fmt: skip
ZERO_SHOT = ("arc_easy", "arc_challenge", "piqa", "hellaswag", "winogrande", "openbookqa")
WHOLE = {"keeps": [0.8, 0.9, 0.6], "max_windows": 64, "limit": 300}
CPU_SHARE = {"keeps": [0.8], "max_windows": 32, "limit": 100}
OUT = Path("benchmarks/results/real-smollm2.json")
HERE = Path("out")


def recipe(options: argparse.Namespace, name: str) -> Recipe:
    """A recipe at this script's effort, and with the overrides that are meant for it."""
    return load_recipe(name, settings(options, name))


def settings(options: argparse.Namespace, name: str) -> list[str]:
    """What a recipe is run with other than it ships."""
    ours = [f"{option}={here}" for option, here, _ in EFFORT.get(name, [])]
    given = settings_by_recipe(options.recipes, options.set)[name]
    replaced = {setting.partition("=")[0] for setting in given}
    return [setting for setting in ours if setting.partition("=")[0] not in replaced] + given


def tasks(options: argparse.Namespace) -> list[Task]:
    """The parts of every row: the dense model's, then what is cheap, then the searches, keep 0.8 before others."""

    def order(run: tuple[str, float]) -> tuple[Any, ...]:
        name, keep = run
        place = CHEAP_FIRST.index(name) if name in CHEAP_FIRST else CHEAP_FIRST.index("slimrank")
        return name in EFFORT, keep != 0.8, -keep, place

    runs = sorted(((name, keep) for name in options.recipes for keep in options.keeps), key=order)
    dense = {"recipe": "dense", "keep": 1.0, "seed": None, "settings": []}
    heads = [dense] + [
        {"recipe": name, "keep": keep, "seed": seed, "settings": settings(options, name)}
        for seed in options.seeds
        for name, keep in runs
    ]
    parts = [{"part": "texts", "max_windows": options.max_windows}]
    parts += [{"part": name, "limit": options.limit} for name in options.tasks]
    return [head | part for head in heads for part in parts]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="by default made under out/smollm2 if missing")
    rows_of.add_calibration(parser, "SPEC of the text, by default WikiText-2's training split on the hub")
    parser.add_argument("--text", action="append", help="SPEC to judge on; may be repeated")
    parser.add_argument("--recipes", type=recipe_rows.names, default=list(shipped_recipes()), help="a,b; default all")
    parser.add_argument("--set", action="append", default=[], metavar="[RECIPE:]KEY=VALUE")
    parser.add_argument("--keeps", type=recipe_rows.keeps, help="default 0.8,0.9,0.6")
    parser.add_argument("--seeds", type=recipe_rows.seeds, default=[3])
    parser.add_argument("--samples", type=rows_of.count, default=64, help="calibration windows")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-windows", type=rows_of.count, help="windows judged of each text, default 64")
    parser.add_argument("--tasks", help="a,b or none; default the six zero-shot ones, of --tasks-path: local_...")
    parser.add_argument("--tasks-path", type=Path, help="folder of task files, such as a copy of examples/tasks")
    parser.add_argument("--limit", type=rows_of.count, help="documents of each task, default 300")
    parser.add_argument("--cpu-share", action="store_true", help="keep 0.8, 32 windows, 100 documents by default")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--progress", type=Path, help="folder in which stopped rows go on; needs --tasks none")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after that")
    parser.add_argument("--table", action="store_true", help="print the table of --out and stop")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FILE", help="add these files' rows to --out and stop")
    rows_of.add_options(parser, out_required=False, jobs=False)
    parser.set_defaults(out=OUT)


def prepare(options: argparse.Namespace) -> Tasks | None:
    """Fill what was left out, fetch what it stands for, and return the harness's tasks.

    Raises:
        UsageError: for options that cannot be meant.
        SlimrankError: if model or texts can't be fetched.
    """
    for key, value in (CPU_SHARE if options.cpu_share else WHOLE).items():
        setattr(options, key, getattr(options, key) or value)
    if options.progress is not None and options.tasks != "none":
        raise UsageError("--progress keeps rows without tasks: give --tasks none, and measure the tasks without it.")
    for name in options.recipes:
        recipe(options, name)
    harness = harness_of(options)
    fill_texts(options)
    if options.model is None:
        options.model = str(HERE / "smollm2")
        smollm2.make(Path(options.model), None, None)
    return harness


def fill_texts(options: argparse.Namespace) -> None:
    """The hub's texts for those that were left out."""
    try:
        if options.text is None:
            options.text = [f"{papers.WIKITEXT}:test", papers.c4(HERE)]
            read_text(options.text[0])
        if options.calibration is None:
            options.calibration = [f"{papers.WIKITEXT}:train"]
            read_text(options.calibration[0])
    except SlimrankError as error:
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise SlimrankError(
            f"The texts cannot be fetched ({reason}): give files by --calibration and --text, or to make real by "
            "CALIBRATION=FILE TEXTS='FILE FILE'."
        ) from error


def harness_of(options: argparse.Namespace) -> Tasks | None:
    """The tasks, whose names are filled in; those that nobody named are left out where lm-eval is not installed."""
    named = options.tasks is not None or options.tasks_path is not None
    prefix = "local_" if options.tasks_path else ""
    names = [prefix + name for name in ZERO_SHOT] if options.tasks is None else options.tasks.split(",")
    options.tasks = [] if names == ["none"] else names
    try:
        return Tasks(options.tasks, options.tasks_path, options.limit) if options.tasks else None
    except MissingLibrary as error:
        if named:
            raise
        print(f"The tasks are left out, for another run to add: {error}", file=sys.stderr)
        options.tasks = []
        return None


def settings_of_file(options: argparse.Namespace) -> dict[str, Any]:
    """What all rows depend on."""
    return {
        "model": rows_of.named(options.model),
        "calibration": rows_of.calibrated_on(options.calibration),
        "samples": options.samples,
        "window": options.window,
        "texts": [rows_of.described(text) for text in recipe_rows.read_texts(options.text)],
        "dtype": options.dtype,
    }


def show(out: Path) -> None:
    """Print the table of the file's rows."""
    if not out.exists():
        raise UsageError(f"--out {out} does not exist: measure something first, or give the file of another run.")
    print("\n".join(table(rows_of.read(out)[0], CHEAP_FIRST)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    options = parser.parse_args(arguments)
    with rows_of.one_sentence():
        if options.merge:
            rows_of.merge(options.merge, options.out, real_rows.KEYS, options.mixed)
        elif not options.table:
            harness = prepare(options)
            runs = {name: recipe(options, name) for name in options.recipes}
            measure = real_rows.measuring(runs, harness)
            rows_of.run(options, tasks(options), measure, settings_of_file(options), real_rows.there)
        show(options.out)


if __name__ == "__main__":
    main()
