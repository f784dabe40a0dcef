"""What real.py measures of a model in memory, dense or compressed: its texts, and each of its tasks."""

import argparse
import gc
import math
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import recipes as recipe_rows
from rows import Task

import slimrank
from slimrank.calibrate import Text
from slimrank.errors import SlimrankError
from slimrank.evaluate import text_json
from slimrank.evaluate.memory import begin_peak, peak
from slimrank.evaluate.tasks import TaskResult, Tasks
from slimrank.model.load import Loaded
from slimrank.recipe import Recipe
from slimrank.run.compare import compare
from slimrank.run.rows import Row
from slimrank.texts.reading import Reading

AT_LEAST = ("max_windows", "limit")
KEYS = ("recipe", "keep", "seed", "settings", "part", *AT_LEAST)
Run = tuple[str, float]


def there(row: Task, task: Task) -> bool:
    """Whether the row is that part, judged on as much text or as many documents, or more."""
    same = all(row.get(key) == value for key, value in task.items() if key not in AT_LEAST)
    return same and all(row.get(key, 0) >= task[key] for key in AT_LEAST if key in task)


def measuring(recipes: dict[str, Recipe], harness: Tasks | None) -> Callable[..., Iterator[Task | str]]:
    """The function that measures parts of rows, those of one seed from one calibration."""

    def measure(options: argparse.Namespace, parts: list[Task]) -> Iterator[Task | str]:
        until = time.monotonic() + 60 * options.minutes
        scores = Scores(harness)
        loaded = slimrank.load(options.model, device=options.device, dtype=options.dtype)
        first = next((part["seed"] for part in parts if part["seed"] is not None), options.seeds[0])
        by_seed: dict[int, list[Task]] = {}
        for part in parts:
            by_seed.setdefault(first if part["seed"] is None else part["seed"], []).append(part)
        for seed, group in by_seed.items():
            if time.monotonic() < until:
                yield from of_seed(options, loaded, seed, group, recipes, scores, until)

    return measure


def of_seed(
    options: argparse.Namespace,
    loaded: Loaded,
    seed: int,
    group: list[Task],
    recipes: dict[str, Recipe],
    scores: "Scores",
    until: float,
) -> Iterator[Task | str]:
    """The parts of one seed, as they are done, and a sentence for each run that failed; no run begins after `until`."""
    parts: dict[Run, list[Task]] = {}
    for part in group:
        parts.setdefault((part["recipe"], part["keep"]), []).append(part)
    judged = any(part["part"] == "texts" for part in group)
    texts = recipe_rows.read_texts(options.text) if judged else []
    names = {recipes[name].name: name for name in recipes}
    reading = Reading(options.calibration, options.samples, options.window, seed)
    failures: list[str] = []

    def failed(made: Recipe, keep: float, error: Exception) -> None:
        failures.append(sentence(names[made.name], keep, seed, error))
        traceback.clear_frames(error.__traceback__)  # with what they hold of the device's memory
        gc.collect()
        begin_peak(loaded.model.device)

    runs = [(recipes[name], keep) for name, keep in parts if name != "dense"]
    more = {"max_windows": options.max_windows, "failed": failed}
    if options.progress is None:
        found = compare(loaded, runs, texts, reading, **more)
    else:
        place = {"device": options.device, "dtype": options.dtype, "out": options.progress / f"seed-{seed}"}
        found = compare(options.model, runs, texts, reading, **more, **place)
    begin_peak(loaded.model.device)
    dense = row = next(found)
    while row is not None:
        bytes_ = peak(loaded.model.device)
        for part in parts.get((names.get(row.recipe, row.recipe), row.keep), []):
            if part["part"] == "texts":
                yield part | figures(row, dense, texts) | {"peak_bytes": bytes_}
            else:
                yield from scores.of(loaded, part)
        if time.monotonic() > until:
            break
        begin_peak(loaded.model.device)
        row = next(found, None)
        yield from failures
        failures.clear()
    found.close()


def figures(row: Row, dense: Row, texts: list[Text]) -> dict[str, Any]:
    """What a row says of its texts and sizes, as JSON."""
    read = {text.source: recipe_rows.short(text) for text in texts}
    measured = {read[text]: text_json(found, dense.texts[text]) for text, found in row.texts.items()}
    return {
        "texts": {text: {key: rounded(value) for key, value in found.items()} for text, found in measured.items()},
        "kept": rounded(row.linears / dense.linears),
        "parameters": row.parameters,
        "bytes": row.bytes,
        "seconds": None if row.seconds is None else round(row.seconds, 1),
        "blocks": recipe_rows.block_shares(row.plan) if row.plan else [],
        "notes": [note for note in row.plan.notes if "/" not in note] if row.plan else [],
    }


class Scores:
    """The harness's tasks on models in memory; one that could not be run on the first is not tried again."""

    def __init__(self, harness: Tasks | None) -> None:
        self.harness, self.worked, self.dropped = harness, set[str](), set[str]()

    def of(self, loaded: Loaded, part: Task) -> Iterator[Task | str]:
        """A task's row, or what was wrong."""
        name = part["part"]
        if self.harness is None or name in self.dropped:
            return
        started = time.perf_counter()
        try:
            found = self.harness.measure(loaded, [name])
        except Exception as error:  # the harness and its data sets raise errors of many unrelated types
            said = sentence(part["recipe"], part["keep"], part["seed"], error)
            if name not in self.worked:
                self.dropped.add(name)
                said = f"{said.rstrip('.')}; it is not tried on other models."
            yield said
            return
        self.worked.add(name)
        yield part | scored(found, name) | {"seconds": round(time.perf_counter() - started, 1)}


def scored(found: dict[str, TaskResult], name: str) -> dict[str, Any]:
    """A task's result as JSON; of a group, whatever the harness calls its members, only the task's own name counts."""
    if name not in found:
        raise SlimrankError(f"--tasks {name} is a group of {', '.join(found)}: name those that you mean.")
    result = asdict(found[name])
    metrics = result["metrics"].items()
    return result | {"metrics": {key: {k: rounded(v) for k, v in score.items()} for key, score in metrics}}


def sentence(recipe: str, keep: float, seed: int | None, error: Exception) -> str:
    """What failed and why; where, if it was not foreseen."""
    said = " ".join(str(error).split())[:500] or type(error).__name__
    if not isinstance(error, SlimrankError):
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}: {said}"
    return f"{recipe} at keep {keep:g}{'' if seed is None else f', seed {seed}'}: {said}"


def rounded(value: float | str | None) -> float | str | None:
    """To seven digits, a count or a word as it is; None for what is not a finite number."""
    if value is None or isinstance(value, int | str):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None
