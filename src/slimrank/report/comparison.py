"""The page of a comparison, made from its compare.json."""

import json
import shlex
from pathlib import Path
from typing import Any

from slimrank.plan import Plan
from slimrank.report import charts
from slimrank.report.data import Columns, columns, joined, linear_columns
from slimrank.report.measured import TEXT_HEAD, read_json, text_cells
from slimrank.report.page import render
from slimrank.run.rows import budget_cell, budget_title, spent

ALIKE = ("name", "form", "shape", "bytes")  # what a comparison's page leaves out, to stay small


def comparison_page(path: Path) -> str:
    """The HTML for the compare.json at `path`.

    Raises:
        UsageError: if it can't be read, or altair is not installed.
    """
    found = read_json(path, "rows")
    rows, settings = found["rows"], found["settings"]
    plans = {label(row): Plan.model_validate(row["plan"]) for row in rows if row["plan"]}
    sized = [run for run, plan in plans.items() if plan.size]
    linears = joined([own_columns(plan, run, bits=bool(sized)) for run, plan in plans.items()])
    texts = list(rows[0]["texts"])
    return render(
        "comparison",
        comparison_charts(linears, list(plans), sized, texts),
        {"linears": linears, "measured": columns(point for row in rows for point in points(row))},
        title=f"{settings['model']}: {len(set(settings['recipes']))} recipes compared",
        lead=lead(rows, texts),
        head=head(texts, budget_title(row.get("size") for row in rows)),
        rows=[cells(row, texts) for row in rows],
        command=shlex.join(settings.get("command", ())),
        fingerprints=settings_shown(settings) + fingerprints(plans),
        recipes=list({plan.recipe.name: plan.recipe.to_yaml() for plan in plans.values()}.items()),
    )


def own_columns(plan: Plan, run: str, *, bits: bool) -> Columns:
    """A row per linear of a run; bits: whether the column of that name is there, empty without a budget of bytes."""
    found = without(linear_columns(plan, run=run), ALIKE)
    return {"bits": [None] * len(found["run"]), **found} if bits else found


def comparison_charts(linears: Columns, runs: list[str], sized: list[str], texts: list[str]) -> dict[str, charts.Spec]:
    """By the id of their element; sized: the runs with a budget of bytes."""
    made = {"frontier-chart": charts.frontier(texts)}
    if runs:
        made["map-kept"] = charts.heat_map("kept", "share of parameters kept", linears, largest=1, runs=runs)
    if sized:
        title = "bits of a number of the dense linear"
        made["map-bits"] = charts.heat_map("bits", title, linears, largest=8, runs=sized)
    if runs and any(linears["measured"]):
        made["agreement"] = charts.agreement(linears, runs)
    return made


def label(row: dict[str, Any]) -> str:
    """A row's name in the lists."""
    return f"{row['recipe']} at {budget_of(row)}"


def budget_of(row: dict[str, Any]) -> str:
    """A row's keep or size, in a word."""
    return budget_cell(row["keep"], row.get("size"))


def points(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row's perplexity on every text."""
    return [
        {
            "recipe": row["recipe"],
            "budget": budget_of(row),
            "text": text,
            "perplexity": measured["perplexity"],
            "nats": row["nats_lost"][text],
            "megabytes": row["bytes"] / 1e6,
        }
        for text, measured in row["texts"].items()
    ]


def lead(rows: list[dict[str, Any]], texts: list[str]) -> str:
    """The best recipe at every keep and size, on the first text."""
    best, by_budget = list[str](), dict[tuple[int, float], list[dict[str, Any]]]()
    for row in rows:
        if row["plan"]:
            by_budget.setdefault((row.get("size") or 0, row["keep"]), []).append(row)
    for size, keep in sorted(by_budget, reverse=True):
        first = min(by_budget[size, keep], key=lambda row: row["nats_lost"][texts[0]])
        at = f"{'' if size else 'keep '}{budget_of(first)}"
        best.append(f"{first['recipe']} at {at} ({first['nats_lost'][texts[0]]:+.3f} nats a token)")
    return f"Least lost on {texts[0]}: " + ", ".join(best) + "." if best else "The dense model alone."


def head(texts: list[str], budget: str) -> list[str]:
    """The columns of the table of rows."""
    names = [name for text in texts for name in (Path(text).name, *TEXT_HEAD[1:])]
    return ["recipe", budget, *names, "linears", "parameters", "bytes", "seconds"]


def cells(row: dict[str, Any], texts: list[str]) -> list[str]:
    """A row of it."""
    found = [cell for text in texts for cell in text_cells({"nats_lost": row["nats_lost"][text]} | row["texts"][text])]
    counts = [f"{row[key]:,}" for key in ("linears", "parameters", "bytes")]
    return [row["recipe"], budget_of(row), *found, *counts, spent(row["seconds"])]


def fingerprints(plans: dict[str, Plan]) -> list[tuple[str, str]]:
    """The hashes of the model and of the calibration text, which all rows share."""
    plan = next(iter(plans.values()), None)
    if plan is None:
        return []
    return [
        (f"{part}, {key}", value if isinstance(value, str) else json.dumps(value))
        for part in ("model", "calibration")
        for key, value in getattr(plan, part).items()
    ]


def settings_shown(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """The settings as a person writes them."""
    flat = {k: v for k, v in settings.items() if k not in ("reading", "command")} | {
        f"reading, {k}": v for k, v in settings["reading"].items()
    }
    return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in flat.items()]


def without(table: Columns, names: tuple[str, ...]) -> Columns:
    """The other columns."""
    return {key: values for key, values in table.items() if key not in names}
