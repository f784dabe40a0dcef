"""Rows of a benchmark: measured in one process or several, kept in a JSON file, and never measured twice.

The file is {"settings": {...}, "rows": [...]}; it is written anew after each row, so that a stopped run goes on where
it was. Each row holds the keys of its task, such as recipe, keep and seed, beside what was measured.
"""

import argparse
import hashlib
import json
import multiprocessing
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers

import slimrank
from slimrank.calibrate import Text
from slimrank.errors import SlimrankError, UsageError

Task = dict[str, Any]
Measure = Callable[[argparse.Namespace, list[Task]], Iterable[Task]]


def add_options(parser: argparse.ArgumentParser, *, out_required: bool = True) -> None:
    """How to run, for every benchmark alike."""
    parser.add_argument("--jobs", type=count, default=1, help="processes, a row each; 1 shares one calibration")
    parser.add_argument("--threads", type=count, default=1, help="threads of each process")
    parser.add_argument("--out", type=Path, required=out_required, help="the JSON file, gone on with where it has rows")


def count(text: str) -> int:
    """The parser of a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1.")
    return int(text)


@contextmanager
def one_sentence() -> Iterator[None]:
    """What is wrong with a model, text or option ends a benchmark as it ends a command."""
    try:
        yield
    except SlimrankError as error:
        print(error, file=sys.stderr)
        sys.exit(error.status)
    except OSError as error:
        print(f"{error.filename or 'The disk'}: {error.strerror or error}.", file=sys.stderr)
        sys.exit(1)


def run(
    options: argparse.Namespace, tasks: list[Task], measure: Measure, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Every task's row, in the tasks' order; those in `options.out` are taken from there.

    measure(options, tasks) yields the tasks' rows. settings: what all rows depend on, kept in the file.

    Exits with status 1 after the rest is done if a row failed.

    Raises:
        UsageError: if the file's settings are others.
    """
    found, before = stored(options.out, settings)
    missing = [task for task in tasks if not any(matches(row, task) for row in found)]
    failures = 0
    for row in produced(options, missing, measure):
        if isinstance(row, str):
            failures += 1
            print(row, file=sys.stderr, flush=True)
            continue
        found.append(row)
        write(options.out, settings | joined(before, versions(options)), found)
        print({key: value for key, value in row.items() if not isinstance(value, dict | list)}, flush=True)
    if failures:
        sys.exit(f"{failures} of {len(missing)} rows failed: the others are in {options.out}.")
    return [next(row for row in found if matches(row, task)) for task in tasks]


def produced(options: argparse.Namespace, tasks: list[Task], measure: Measure) -> Iterator[dict[str, Any] | str]:
    """The rows as they are done; a sentence in the place of one that failed in a process of its own."""
    if options.jobs == 1:
        torch.set_num_threads(options.threads)
        yield from measure(options, tasks) if tasks else ()
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        options.jobs, context, initializer=torch.set_num_threads, initargs=(options.threads,)
    ) as pool:
        futures = {pool.submit(alone, measure, options, task): task for task in tasks}
        for future in as_completed(futures):
            error = future.exception()
            yield f"{futures[future]}: {type(error).__name__}: {error}" if error else future.result()


def alone(measure: Measure, options: argparse.Namespace, task: Task) -> dict[str, Any]:
    """One task's row."""
    (row,) = measure(options, [task])
    return row


def stored(path: Path, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the file and its settings, none where there is no file."""
    if not path.exists():
        return [], {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        theirs, found = content["settings"], list(content["rows"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--out {path} is there and holds no rows of a benchmark: give another one.") from error
    for key, value in json.loads(json.dumps(settings)).items():
        if theirs.get(key) != value:
            raise UsageError(f"{path} was made with {key} {theirs.get(key)!r}, not {value!r}: give another --out.")
    return found, theirs


def joined(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What computed the rows, where other machines or versions have computed some of them before: all of them."""
    seen = {key: str(before[key]).split("; ") if key in before else [] for key in now}
    return {key: "; ".join(dict.fromkeys([*seen[key], str(value)])) for key, value in now.items()}


def matches(row: dict[str, Any], task: Task) -> bool:
    """Whether the row is that task's."""
    return all(key in row and row[key] == value for key, value in task.items())


def write(path: Path, settings: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Replace the file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    part.write_text(f'{{"settings": {json.dumps(settings, indent=2)},\n "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
    part.replace(path)


def versions(options: argparse.Namespace) -> dict[str, Any]:
    """What computed the rows."""
    return {
        "slimrank": slimrank.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{processor()}, {options.jobs} processes of {options.threads} threads",
    }


def processor() -> str:
    """The GPU's name, or else the processor's."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def named(model: str) -> str:
    """A model without the folders it is in."""
    return Path(model).name if Path(model).exists() else model


def described(text: Text) -> str:
    """A text's file name, size and hash, so that it can be found again wherever it is."""
    return f"{Path(text.source).name}: {len(text.text)} characters, sha256 {text.sha256[:16]}"


def fingerprint(value: Any) -> str:
    """Sixteen digits of the hash of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
