"""From a folder that slimrank wrote to its page."""

from pathlib import Path

from slimrank.checkpoint import find, write_text
from slimrank.errors import UsageError
from slimrank.report.comparison import comparison_page
from slimrank.report.measured import understood
from slimrank.report.run import run_page
from slimrank.store.disk import check_file

COMPARISON = "compare.json"


def page_of(folder: Path) -> Path:
    """Where the page of a checkpoint or of a comparison belongs.

    Raises:
        UsageError: if the folder holds neither.
    """
    if (find(folder) / COMPARISON).is_file():
        return folder / "report.html"
    if (folder / "slimrank" / "plan.json").is_file():
        return folder / "slimrank" / "report.html"
    raise UsageError(
        f"{folder} holds neither slimrank/plan.json nor {COMPARISON}: give a folder that slimrank compress or "
        "slimrank compare --out wrote."
    )


def write_report(
    folder: Path, out: Path | None = None, *, evaluation: Path | None = None, bench: Path | None = None
) -> Path:
    """Write the page of what `folder` holds to `out`, by default into the folder; returns where it is.

    Raises:
        UsageError: if something that the page needs is missing: it is named.
    """
    place = page_of(folder)
    out = out or place
    check_file("--out", out)
    if (folder / COMPARISON).is_file():
        if evaluation or bench:
            raise UsageError(
                f"--evaluation and --bench belong to the page of a run, and {folder} is a comparison: leave them out."
            )
        with understood(folder / COMPARISON):
            page = comparison_page(folder / COMPARISON)
    else:
        with understood(folder / "slimrank/plan.json", folder / "slimrank/account.json"):
            page = run_page(folder, evaluation, bench)
    write_text(out, page)
    return out
