"""Rows of a benchmark: measured in one process or several, kept in a JSON file, and never measured twice.

The file is {"settings": {...}, "rows": [...]}; it is written anew after each row, so that a stopped run goes on where
it was. Each row holds the keys of its task, such as recipe, keep and seed, beside what was measured, and where and by
what: see provenance.py. Rows of several commits do not share a file, unless --mixed says that they may.
"""

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import provenance
import torch

from slimrank.calibrate import Text, read_text
from slimrank.errors import SlimrankError, UsageError
from slimrank.runtime.digests import sha256_of_json
from slimrank.texts.mix import mixed

Task = dict[str, Any]
Measure = Callable[[argparse.Namespace, list[Task]], Iterable[Task | str]]
There = Callable[[dict[str, Any], Task], bool]


def add_options(parser: argparse.ArgumentParser, *, out_required: bool = True, jobs: bool = True) -> None:
    """How to run, for every benchmark alike; jobs: whether a row may be a process's own."""
    if jobs:
        parser.add_argument("--jobs", type=count, default=1, help="processes, a row each; 1 shares one calibration")
    else:
        parser.set_defaults(jobs=1)
    parser.add_argument("--threads", type=count, default=1, help="threads of each process")
    parser.add_argument("--out", type=Path, required=out_required, help="the JSON file, gone on with where it has rows")
    parser.add_argument("--mixed", action="store_true", help="add to a file whose rows are of another commit")
    parser.add_argument("--commit", help="the commit of this code, where it is no checkout that knows it")


def add_calibration(parser: argparse.ArgumentParser, said: str) -> None:
    """The calibration text or texts, as every command takes them."""
    parser.add_argument("--calibration", action="append", help=f"{said}; may be repeated, also as FILE*0.3")


def add_windows(parser: argparse.ArgumentParser) -> None:
    """What one model is calibrated and judged on; see windows_settings."""
    add_calibration(parser, "SPEC of the calibration text")
    parser.add_argument("--text", action="append", required=True, help="SPEC to judge on; may be repeated")
    parser.add_argument("--samples", type=count, default=64, help="calibration windows")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--max-windows", type=count, default=32, help="windows judged of each text")
    parser.add_argument("--seed", type=int, default=3)


def windows_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The settings that follow from a model and the options of add_windows."""
    return {key: getattr(options, key) for key in ("samples", "window", "max_windows", "seed")} | {
        "model": named(options.model),
        "calibration": calibrated_on(options.calibration or ["demo"]),
        "texts": [described(read_text(spec)) for spec in options.text],
    }


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
    options: argparse.Namespace,
    tasks: list[Task],
    measure: Measure,
    settings: dict[str, Any],
    there: There | None = None,
) -> list[dict[str, Any]]:
    """Every task's row, in the tasks' order; those in `options.out` are taken from there.

    measure(options, tasks) yields the tasks' rows, in the place of one that failed a sentence, and may leave some for
    another time. settings: what all rows depend on, kept in the file. there(row, task): whether a row is as good as the
    task's, by default that it holds the task's keys.

    Exits with status 1 after the rest is done if a row failed.

    Raises:
        UsageError: if the file's settings are others, or rows are missing and those that are there of another commit.
    """
    there = there or matches
    found, before = stored(options.out, settings)
    missing = [task for task in tasks if not any(there(row, task) for row in found)]
    measured_by = provenance.here(options) if missing else {}
    if missing and not options.mixed:
        require_commit(options.out, found, measured_by["commit"])
    failures, done = 0, 0
    for row in produced(options, missing, measure):
        if isinstance(row, str):
            failures += 1
            print(row, file=sys.stderr, flush=True)
            continue
        done += 1
        found.append(row | measured_by)
        write(options.out, before | settings, found)
        print({key: value for key, value in row.items() if not isinstance(value, dict | list)}, flush=True)
    if failures:
        sys.exit(f"{failures} of {len(missing)} rows failed: the others are in {options.out}.")
    if left := len(missing) - done:
        print(f"{left} rows are left: the same command goes on with them.", file=sys.stderr)
    firsts = (next((row for row in found if there(row, task)), None) for task in tasks)
    return [row for row in firsts if row is not None]


def require_commit(path: Path, rows: Sequence[dict[str, Any]], commit: str | None) -> None:
    """Raise a UsageError if one of the file's rows was measured at another commit, or says nothing of it."""
    others = [row.get("commit") for row in rows if "commit" not in row or row["commit"] != commit]
    if others:
        theirs = ", ".join(dict.fromkeys(str(other or "unknown") for other in others))
        raise UsageError(
            f"{path} holds rows of commit {theirs}, and this is commit {commit or 'unknown'}: give another --out, or "
            "--mixed to let each row keep its own."
        )


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
    found, theirs = read(path)
    for key, value in json.loads(json.dumps(settings)).items():
        if theirs.get(key) != value:
            raise UsageError(f"{path} was made with {key} {theirs.get(key)!r}, not {value!r}: give another --out.")
    return found, theirs


def read(path: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the file and its settings."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return list(content["rows"]), dict(content["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--out {path} is there and holds no rows of a benchmark: give another one.") from error


def merge(files: Sequence[Path], out: Path, keys: Sequence[str], mixed: bool) -> None:
    """Write the files' rows to `out`, whose own come first; of rows with the same `keys` the first stays.

    Raises:
        UsageError: if the files' settings differ, or the commits of their rows, unless these may be mixed.
    """
    files = [out, *files] if out.exists() else files
    contents = [read(file) for file in files]
    merged: dict[str, dict[str, Any]] = {}
    for file, (rows, settings) in zip(files, contents, strict=True):
        if settings != contents[0][1]:
            key = next(key for key in settings | contents[0][1] if settings.get(key) != contents[0][1].get(key))
            raise UsageError(f"{file} was made with another {key} than {files[0]}: they are no parts of one table.")
        for row in rows:
            merged.setdefault(json.dumps([row.get(key) for key in keys]), row)
    commits = {row.get("commit") for row in merged.values()}
    if len(commits) > 1 and not mixed:
        theirs = ", ".join(sorted(str(commit or "unknown") for commit in commits))
        raise UsageError(f"The files hold rows of the commits {theirs}: give --mixed to let each row keep its own.")
    write(out, contents[0][1], list(merged.values()))


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


def named(model: str) -> str:
    """A model without the folders it is in."""
    return Path(model).name if Path(model).exists() else model


def described(text: Text) -> str:
    """A text's file name, size and hash, so that it can be found again wherever it is."""
    return f"{Path(text.source).name}: {len(text.text)} characters, sha256 {text.sha256[:16]}"


def calibrated_on(specs: Sequence[str]) -> str:
    """The calibration text, or all of them with their shares."""
    texts = [(described(read_text(spec)), share) for spec, share in mixed(specs)]
    return texts[0][0] if len(texts) == 1 else "; ".join(f"{share:.4g} of {text}" for text, share in texts)


def fingerprint(value: Any) -> str:
    """Sixteen digits of the hash of a JSON value."""
    return sha256_of_json(value)[:16]
