"""The one place that prints: progress, tables, and errors."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from slimrank.compress import Result, peak_memory
from slimrank.evaluate import ModelResult
from slimrank.plan import Plan

T = TypeVar("T")
out = Console(soft_wrap=not sys.stdout.isatty())
err = Console(stderr=True, soft_wrap=True)


def track(iterable: Iterable[T], description: str, total: int) -> Iterator[T]:
    """A progress bar on stderr with the time left, where stderr is a terminal."""
    columns = (
        TextColumn("{task.description:>12}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=not sys.stderr.isatty()) as progress:
        yield from progress.track(iterable, total=total, description=description)


def error(message: str) -> None:
    """One sentence on stderr."""
    err.print("[bold red]error:[/]", Text(message))


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], title: str | None = None) -> None:
    """A table whose first column is text and whose others are numbers."""
    view = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        view.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        view.add_row(*row)
    out.print(view)


def totals(rows: Mapping[str, str]) -> None:
    """Names and values, a line each."""
    width = max(map(len, rows))
    for name, value in rows.items():
        out.print(f"{name:<{width}}  {value}", highlight=False)


def show_plan(plan: Plan) -> None:
    """A row per linear: form, rank, parameters, and the share of the error, predicted and measured."""
    rows = [
        (
            name,
            linear.form,
            str(linear.rank or "-"),
            f"{linear.parameters / (linear.shape[0] * linear.shape[1]):.3f}",
            f"{linear.relative:.4f}",
            "-" if linear.measured is None else f"{linear.measured:.4f}",
        )
        for name, linear in plan.linears.items()
    ]
    table(["linear", "form", "rank", "kept", "predicted", "measured"], rows)
    out.print(
        "predicted, measured: the error's share of the norm in the recipe's metric, measured on held-out windows\n"
    )
    for note in plan.notes:
        err.print("[yellow]note:[/]", Text(note))


def show_result(result: Result, size: int | None) -> None:
    """The plan and the totals of a run. size: bytes on disk."""
    show_plan(result.plan)
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items())
    rows = result.summary() | {"seconds": f"{sum(result.seconds.values()):.1f} ({stages})"}
    if size is not None:
        rows["on disk"] = f"{size:,} bytes"
    totals(rows | {"peak memory": f"{peak_memory() / 2**20:,.0f} MiB"})


def show_evaluation(results: Sequence[ModelResult]) -> None:
    """Models side by side, a table per text."""
    for text, reference in results[0].texts.items():
        rows = [
            (
                r.name,
                f"{r.texts[text].perplexity:.3f}",
                f"{r.nats_lost(results[0])[text]:+.4f}",
                f"{r.linear_parameters:,}",
                f"{r.parameters:,}",
                f"{r.bytes:,}",
            )
            for r in results
        ]
        title = f"{text}: {reference.windows} windows of {reference.window} tokens"
        table(["model", "perplexity", "nats lost", "linears", "parameters", "bytes"], rows, title)
