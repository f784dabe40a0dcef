"""slimrank report: the HTML page of a run or a comparison."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder that compress or compare --out wrote.")],
    out: Annotated[Path | None, typer.Option(help="HTML file to write; by default inside DIR.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Include these results of evaluate --json.")] = None,
    bench: Annotated[Path | None, typer.Option(help="Include these results of bench --json.")] = None,
) -> None:
    """Write a self-contained HTML page about a run or a comparison.

    Example: slimrank report small --evaluation small.json
    """
    from slimrank.cli import console
    from slimrank.report import write_report

    console.out.print(f"Written to {write_report(folder, out, evaluation=evaluation, bench=bench)}")
