"""The one place that prints: progress, tables, and errors."""

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from slimrank.errors import MissingLibrary
from slimrank.evaluate import Mean, ModelResult, Perplexity
from slimrank.evaluate.speed import Bench
from slimrank.evaluate.tasks import Score
from slimrank.plan import LinearPlan, Plan, Size, Time
from slimrank.report import write_report as write_page
from slimrank.run.estimate import Estimate, gib
from slimrank.run.result import Result, memory_for_people, peak_memory
from slimrank.run.rows import Row, budget_title, spent
from slimrank.runtime.track import Description
from slimrank.texts.tokens import WHERE

T = TypeVar("T")
LONGEST = 2000
LITERAL: Any = {"markup": False, "emoji": False, "highlight": False, "soft_wrap": True}
out = Console(width=100_000, **LITERAL)  # a narrow terminal breaks lines itself; rich would crop them and hide digits
err = Console(stderr=True, **LITERAL)


def track(iterable: Iterable[T], description: Description, total: int) -> Iterator[T]:
    """A progress bar on stderr with the time left, where stderr is a terminal."""
    describe = description if callable(description) else lambda: description
    columns = (
        TextColumn("{task.description:>12}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(describe(), total=total)
        for item in progress.track(iterable, total=total, task_id=task):
            progress.update(task, description=describe())
            yield item


def error(message: str) -> None:
    """One sentence on stderr; what it quotes of a damaged file may be long."""
    err.print(Text("error:", "bold red"), message if len(message) < LONGEST else f"{message[:LONGEST]} ...")


def note(message: str) -> None:
    """A sentence for the user, on stderr."""
    err.print(Text("note:", "yellow"), message)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table whose first column is text and whose others are numbers."""
    view = Table(box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        view.add_column(Text(column), justify="right" if index else "left")
    for row in rows:
        view.add_row(*map(Text, row))
    if title:
        out.print(Text(title, "italic"))
    out.print(view)


def write_report(folder: Path) -> None:
    """Write the page of what was just made and say where it is, or what to install for it."""
    try:
        out.print(f"Report: {write_page(folder)}")
    except MissingLibrary as error:
        note(f"{error} Then: slimrank report {folder}")


def totals(rows: Mapping[str, str]) -> None:
    """Names and values, a line each."""
    width = max(map(len, rows))
    for name, value in rows.items():
        out.print(f"{name:<{width}}  {value}")


def show_plan(plan: Plan) -> None:
    """A row per block: each linear's rank, the share of parameters kept, and the error, predicted and measured."""
    blocks = plan.blocks()
    roles = list(dict.fromkeys(role for linears in blocks.values() for role in linears))
    rows = []
    for block, linears in blocks.items():
        whole = sum(math.prod(one.shape) for one in linears.values())
        kept = sum(one.parameters for one in linears.values()) / whole
        bits = 8 * sum(one.bytes or 0 for one in linears.values()) / whole
        ranks = [stored(linears[role]) if role in linears else "-" for role in roles]
        rows.append(
            (
                str(block),
                *ranks,
                f"{bits:.2f}" if plan.size else f"{kept:.3f}",
                _mean(linears.values(), "relative"),
                _mean(linears.values(), "measured"),
            )
        )
    share = "bits" if plan.size else "kept"
    table(["block", *(role.rpartition(".")[2] for role in roles), share, "predicted", "measured"], rows)
    what = "Rank and bits of each linear" if plan.size else "Rank of each linear"
    out.print(f"{what}. predicted, measured: the block's relative error (root mean square over its linears, in")
    out.print("the recipe's metric), on calibration windows and on held-out ones. The plan lists every linear's.\n")
    if plan.size:
        show_frontier(plan, plan.size)
    if plan.time:
        show_speeds(plan, plan.time)
    for sentence in plan.notes:
        note(sentence)


def stored(linear: LinearPlan) -> str:
    """How a linear is stored, in a cell of the table."""
    return linear.stored if linear.bits else str(linear.rank or "dense")


DECODING = "decoding: how many times as fast as the dense model, by times of layers kept on this machine.\n"
UNTIMED = "A CPU's speeds stand beside once layers were timed, as `slimrank plan --speedup 1 --tokens 1` does.\n"


def show_frontier(plan: Plan, size: Size) -> None:
    """What other sizes would lose, and what this one takes."""
    ends = max(plan.ends.values(), default=16)
    rows = [
        (f"{point / 1e6:,.1f}", f"{point / size.dense:.1%}", f"{size.bits * point / size.used:.2f}", f"{loss:.4f}")
        for point, loss in size.frontier
    ]
    if rows and size.speeds:
        faster = [(*row, f"{speed:.2f}x") for row, speed in zip(rows, size.speeds, strict=True)]
        table(["MB", "of dense", "bits", "nats", "decoding"], faster)
    elif rows:
        table(["MB", "of dense", "bits", "nats"], rows)
    if rows:
        out.print("What the best plan of each size would lose, in nats a token, as predicted from this calibration.")
        out.print(DECODING if size.speeds else UNTIMED)
    out.print(
        f"This plan: {plan.predicted:.4f} nats predicted, {size.used:,} of {size.allowed:,} bytes, {size.bits:.2f} "
        f"bits a number, {ends} in embedding and head; the dense weights take {size.dense:,} bytes.\n"
    )


def show_speeds(plan: Plan, time: Time) -> None:
    """What other speeds would lose, and how fast this plan is."""
    rows = [
        (f"{speedup:.2f}x", f"{1000 * time.dense / speedup:,.1f}", f"{loss:.4f}") for speedup, loss in time.frontier
    ]
    if rows:
        table(["speed", "ms", "nats"], rows)
        out.print("What the best plan of each speed would lose, in nats a token, as predicted from this calibration.\n")
    out.print(f"This plan: {plan.predicted:.4f} nats and {time.sentence()}, at least {time.asked:g} times asked.\n")


def _mean(linears: Iterable[LinearPlan], field: str) -> str:
    values = [getattr(one, field) for one in linears]
    return "-" if None in values else f"{(sum(v * v for v in values) / len(values)) ** 0.5:.4f}"


def show_result(result: Result, size: int | None) -> None:
    """The plan and the totals of a run. size: bytes on disk."""
    show_plan(result.plan)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items())
    label = "seconds" + " since it was resumed" * result.resumed
    rows = result.summary() | {label: f"{sum(result.seconds.values()):.1f} ({stages})"}
    if size is not None:
        rows["on disk"] = f"{size:,} bytes ({size / result.account().dense_bytes:.1%} of the dense weights)"
    totals(rows | {"peak memory": memory_for_people(peak_memory())})


def show_estimate(estimate: Estimate) -> None:
    """One line on stderr before a long run; its time is that of the whole command, what is already over included."""
    seconds = estimate.seconds + time.time() - psutil.Process().create_time()
    taken = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    memory = gib(estimate.memory + estimate.pages)
    if estimate.device is not None:
        memory = f"{gib(estimate.device)} of the device's memory and {memory}"
    err.print(
        f"The linears to compress hold {estimate.touched:.0%} of the model's parameters. Expected: "
        f"{memory} of memory, {gib(estimate.disk)} of temporary disk space, about {taken}."
    )


def show_comparison(rows: Sequence[Row]) -> None:
    """A row per recipe and budget, the first being the dense model: a table per text, and one of sizes and times."""
    dense, title = rows[0].texts, budget_title(row.size for row in rows)
    for text, first in dense.items():
        cells = [(row.recipe, row.budget, *measured(row.texts[text], first)) for row in rows]
        table(["recipe", title, "perplexity", "nats lost", "KL"], cells, of_text(text, first))
    sizes = [
        (row.recipe, row.budget, f"{row.linears:,}", f"{row.parameters:,}", f"{row.bytes:,}", spent(row.seconds))
        for row in rows
    ]
    table(["recipe", title, "linears", "parameters", "bytes", "seconds"], sizes)


def show_evaluation(results: Sequence[ModelResult]) -> None:
    """Models side by side, a table per text, and one of sizes."""
    several = len(results) > 1
    columns = ["model", "perplexity", "nats lost", "KL"] if several else ["model", "perplexity"]
    for text, first in results[0].texts.items():
        cells = [(r.name, *measured(r.texts[text], first)[: len(columns) - 1]) for r in results]
        far = [r.distances[text].told() if text in r.distances else "" for r in results]
        if any(far):
            cells = [(*row, own) for row, own in zip(cells, far, strict=True)]
        table([*columns, "distance"] if any(far) else columns, cells, of_text(text, first))
    sizes = [(r.name, f"{r.linear_parameters:,}", f"{r.parameters:,}", f"{r.bytes:,}") for r in results]
    table(["model", "linears", "parameters", "bytes"], sizes)
    for sentence in [sentence for result in results for sentence in result.notes]:
        note(sentence)
    scores = [
        (name, metric, str(task.items), str(task.shots), *(_score(r.tasks[name].metrics[metric]) for r in results))
        for name, task in results[0].tasks.items()
        for metric in task.metrics
    ]
    if scores:
        table(["task", "metric", "items", "examples", *(r.name for r in results)], scores)


def of_text(text: str, read: Perplexity) -> str:
    """The title of a text's table."""
    special = WHERE.get(read.special_tokens, "")
    return f"{text}: {read.windows} windows of {read.window} tokens, {special and special + ', '}± a standard error"


def measured(found: Perplexity, first: Perplexity) -> tuple[str, str, str]:
    """Perplexity, nats lost and KL; of the first model, which the others are held against, only the perplexity."""
    perplexity = Mean(found.perplexity, found.perplexity_stderr).told(3)
    if found is first:
        return perplexity, "", ""
    return perplexity, found.lost(first).told(4, "+"), found.kl.told(4) if found.kl else "-"


def _score(score: Score) -> str:
    return f"{score.value:.4f}" + ("" if score.stderr is None else f" ± {score.stderr:.4f}")


def show_bench(bench: Bench) -> None:
    """A row per model; speeds with their ratio to the first model's, then what the ratios mean."""
    first, tokens = bench.speeds[0], bench.asked.tokens
    theirs = first.seconds(tokens)
    rows = []
    for speed in bench.speeds:
        cells = [
            f"{1000 * seconds:,.1f} ms" if label == "first token" else f"{count / seconds:,.1f}"
            for label, (count, seconds) in speed.seconds(tokens).items()
        ]
        gains = [f"{theirs[label][1] / seconds:.2f}x" for label, (_, seconds) in speed.seconds(tokens).items()]
        peak = "-" if speed.peak is None else f"{speed.peak / 2**20:,.0f}"
        mixed = [cell for pair in zip(cells, gains, strict=True) for cell in pair]
        rows.append((speed.name, *mixed, f"{speed.weights / 2**20:,.0f}", peak))
    names = [cell for label in theirs for cell in (label, "")]
    table(["model", *names, "MiB", "peak"], rows, f"Tokens a second after a prompt of {tokens} tokens; medians")
    limits = bench.limits
    out.print(f"Measured limits: {limits.bandwidth / 1e9:,.1f} GB/s, {limits.operations / 1e9:,.0f} GFLOP/s.")
    for sentence in bench.notes():
        note(sentence)
