"""Fill the tables of README.md and docs/results.md from the JSON files of benchmarks/results.

python benchmarks/pages.py            # rewrites what stands between <!-- table FILE --> and <!-- end -->
                                      # after <!-- table FILE keep 0.8 --> that keep's rows alone
python benchmarks/pages.py --check    # exits with 1 where a page differs
"""

import argparse
import re
import sys
from pathlib import Path

import rows as rows_of
from real import CHEAP_FIRST
from real_table import table

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "docs" / "results.md")
PLACE = re.compile(r"<!-- table (?P<file>\S+)(?: keep (?P<keep>\S+))? -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """A page with its tables made anew."""

    def one(place: re.Match[str]) -> str:
        rows, _ = rows_of.read(ROOT / "benchmarks" / "results" / place["file"])
        if place["keep"]:
            rows = [row for row in rows if row["keep"] in (1.0, float(place["keep"]))]
        lines = "\n".join(table(rows, CHEAP_FIRST, seconds=False))
        return f"{place[0].splitlines()[0]}\n{lines}\n{measured_by(rows)}\n<!-- end -->"

    return PLACE.sub(one, text)


def measured_by(rows: list[dict[str, object]]) -> str:
    """Which machines, libraries and commits the rows are of."""
    keys = ("machine", "torch", "transformers", "commit")
    seen = {key: ", ".join(dict.fromkeys(str(row[key])[:12] for row in rows if row.get(key))) for key in keys}
    machine, torch, transformers, commits = (seen[key] for key in keys)
    return f"\nMeasured on {machine}, torch {torch}, transformers {transformers}, at {commits}."


def main() -> None:
    """Rewrite the pages, or say which differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    differing = []
    for page in PAGES:
        before = page.read_text(encoding="utf-8")
        after = filled(before)
        if after != before:
            differing.append(page.name)
            if not options.check:
                page.write_text(after, encoding="utf-8")
    if options.check and differing:
        sys.exit(f"{', '.join(differing)}: run python benchmarks/pages.py.")


if __name__ == "__main__":
    main()
