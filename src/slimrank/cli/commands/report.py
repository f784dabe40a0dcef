"""slimrank report: the HTML page of a run or a comparison."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What compress or compare --out wrote.")],
    out: Annotated[Path | None, typer.Option(help="The HTML file; by default inside DIR.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="Show this too: a file of evaluate --json.")] = None,
    bench: Annotated[Path | None, typer.Option(help="Show this too: a file of bench --json.")] = None,
) -> None:
    """Write one HTML file that shows a run or a comparison and needs nothing else to be opened.

    Example: slimrank report small --evaluation small.json
    """
    from slimrank.cli import console
    from slimrank.report import write_report

    console.out.print(f"Written to {write_report(folder, out, evaluation=evaluation, bench=bench)}")
