"""Compress models in processes of their own, and hold what was announced against what it took.

    python benchmarks/announced.py demo --recipes svd-llm,duo-svd,slimrank --out benchmarks/results/announced.json

A row for each model and recipe: seconds and memory that the command announced, the wall-clock and the processor's
seconds of the process from its start to its end, its peak resident memory, and the machine's load before and after.
--name says what is measured where the folder's name does not. --set, --samples, --window, --calibration: as compress
has them. --table FILE prints the table of a file.
"""

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import rows as rows_of
from rows import Task

SAID = re.compile(r"Expected: (?:([\d.]+) GiB of the device's memory and )?([\d.]+) GiB of memory, .*, about ([^.]+)\.")
UNITS = {"seconds": 1, "minutes": 60}
TIME = re.compile(r"(\d+) (seconds|minutes)")


def measure(options: argparse.Namespace, tasks: list[Task]) -> Iterable[Task | str]:
    """A row for every task."""
    for task in tasks:
        yield row_of(options, task)


def row_of(options: argparse.Namespace, task: Task) -> Task | str:
    """What one run announced and took; a sentence if it failed."""
    with tempfile.TemporaryDirectory(prefix="slimrank-announced-") as folder:
        command = [sys.executable, "-m", "slimrank", "compress", options.model, "--recipe", task["recipe"]]
        command += ["--out", str(Path(folder) / "out"), "--device", options.device, *given(options)]
        load, started, before = os.getloadavg()[0], time.perf_counter(), processor()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds, spent = time.perf_counter() - started, processor() - before
        said = SAID.search(done.stderr)
        if done.returncode or said is None:
            return f"{task['model']}, {task['recipe']}: {done.stderr.strip().splitlines()[-1:]}"
        size, on_device = peak(done.stdout), said[1] is not None
        return task | {
            "said": {"seconds": in_seconds(said[3]), "gib": float(said[1] if on_device else said[2])},
            "taken": {"seconds": round(seconds, 1), "gib": round(size, 2), "processor_seconds": round(spent, 1)},
            "load": [round(load, 1), round(os.getloadavg()[0], 1)],
            "settings": given_settings(options),
        }


def given(options: argparse.Namespace) -> Iterator[str]:
    """The options that are passed on."""
    for name in ("samples", "window", "memory"):
        if getattr(options, name):
            yield from (f"--{name}", str(getattr(options, name)))
    for text in options.calibration or ():
        yield from ("--calibration", text)
    for setting in options.set or ():
        yield from ("--set", setting)


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What was measured, without the folders of this machine."""
    texts = rows_of.calibrated_on(options.calibration or ["demo"])
    return {
        "calibration": texts,
        "samples": options.samples,
        "window": options.window,
        "memory": options.memory,
        "set": options.set,
    }


def processor() -> float:
    """Seconds that the processors spent on the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def in_seconds(text: str) -> int:
    """Seconds of `63 seconds` or `12 minutes`."""
    found = TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"no time: {text}")
    return int(found[1]) * UNITS[found[2]]


def peak(printed: str) -> float:
    """GiB of the line `peak memory` that a run ends with."""
    found = re.search(r"^peak memory +([\d,]+) MiB", printed, re.MULTILINE)
    if found is None:
        raise ValueError("the run printed no peak memory")
    return int(found[1].replace(",", "")) / 1024


def table(rows: list[Task]) -> Iterator[str]:
    """The lines of a table: said, taken and how many times as much was taken, of time and of memory."""
    columns = {"model": -22, "recipe": -10, "said s": 8, "taken s": 9, "ratio": 7, "said GiB": 10, "taken": 7}
    columns |= {" ratio": 7, "load": 14}
    yield "".join(name.ljust(-width) if width < 0 else name.rjust(width) for name, width in columns.items())
    for row in rows:
        said, taken = row["said"], row["taken"]
        times = [taken[key] / max(said[key], 1e-9) for key in ("seconds", "gib")]
        load = " to ".join(map(str, row["load"]))
        yield (
            f"{row['model']:<22}{row['recipe']:<10}{said['seconds']:>8}{taken['seconds']:>9}{times[0]:>7.2f}"
            f"{said['gib']:>10}{taken['gib']:>7}{times[1]:>7.2f}{load:>14}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--name", help="what the rows call the model, by default the folder's name")
    parser.add_argument("--recipes", default="svd-llm,duo-svd,slimrank")
    parser.add_argument("--samples", type=rows_of.count)
    parser.add_argument("--window", type=rows_of.count)
    parser.add_argument("--memory")
    parser.add_argument("--calibration", action="append")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a setting of the recipes; repeatable")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--table", type=Path, metavar="FILE", help="print this file's table and measure nothing")
    rows_of.add_options(parser, out_required=False, jobs=False)
    options = parser.parse_args()
    if options.table:
        print("\n".join(table(rows_of.read(options.table)[0])))
        return
    if options.out is None:
        parser.error("give --out, or --table to print a file's table")
    name = options.name or rows_of.named(options.model)
    tasks = [{"model": name, "recipe": recipe, "device": options.device} for recipe in options.recipes.split(",")]
    with rows_of.one_sentence():
        print("\n".join(table(rows_of.run(options, tasks, measure, {}))))


if __name__ == "__main__":
    main()
