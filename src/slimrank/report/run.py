"""The page of one run: what was asked, what came out, and how to have it again."""

import math
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slimrank import demo
from slimrank.checkpoint.account import Account
from slimrank.evaluate import weight_bytes
from slimrank.plan import Plan
from slimrank.report import charts
from slimrank.report.data import (
    Columns,
    columns,
    curve_columns,
    expert_columns,
    linear_columns,
    root_mean_square,
    shown_alone,
    size_columns,
    speed_columns,
)
from slimrank.report.measured import Table, evaluation_notes, evaluation_tables, speed_table, understood
from slimrank.report.page import render
from slimrank.texts.reading import specs_again

Facts = list[tuple[str, str]]


def run_page(folder: Path, evaluation: Path | None = None, bench: Path | None = None) -> str:
    """The HTML for the checkpoint in `folder`; the JSON of `slimrank evaluate` and `slimrank bench` may be added.

    Raises:
        UsageError: if the folder has no plan or account, a JSON can't be read, or altair is not installed.
    """
    plan, account = Plan.load(folder / "slimrank" / "plan.json"), Account.load(folder)
    rows, evaluations, said, speed = sizes(plan, account, folder), list[Table](), list[str](), None
    if evaluation:
        with understood(evaluation):
            evaluations, said = evaluation_tables(evaluation), evaluation_notes(evaluation)
    if bench:
        with understood(bench):
            speed = speed_table(bench)
    data = {
        "linears": linear_columns(plan),
        "experts": expert_columns(plan),
        "curves": curve_columns(plan, account.curves),
        "stages": columns([{"stage": k, "seconds": round(v, 3)} for k, v in account.seconds.items()]),
        **({"sizes": size_columns(plan.size)} if plan.size and plan.size.frontier else {}),
        **({"speeds": speed_columns(plan.time)} if plan.time and plan.time.frontier else {}),
    }
    return render(
        "run",
        run_charts(data, plan),
        data,
        title=f"{account.model}, {plan.recipe.name} at {budget(plan)}",
        lead=lead(plan, account, folder),
        headline=headline(plan, account, rows),
        asked=asked(plan, account),
        sizes=rows,
        forms=forms(plan),
        notes=plan.notes,
        evaluations=evaluations,
        evaluation_notes=said,
        speed=speed,
        by_plan=command(plan, account, "--plan", folder / "slimrank" / "plan.json"),
        by_recipe=command(plan, account, "--recipe", "recipe.yaml", *settled(plan)),
        recipe=plan.recipe.to_yaml(),
        fingerprints=fingerprints(plan, account),
        experts=bool(data["experts"]),
        linears=linear_table(plan),
    )


def budget(plan: Plan) -> str:
    """The budget in a word or two."""
    if plan.time:
        return f"{plan.time.asked:g} times the speed"
    return f"keep {plan.keep:g}" if plan.size is None else megabytes(plan.size.allowed)


def run_charts(data: dict[str, Columns], plan: Plan) -> dict[str, charts.Spec]:
    """By the id of their element, in the page's order; those that have something to show."""
    linears = data["linears"]
    made = {
        "map-kept": charts.heat_map("kept", "share of parameters kept", linears, largest=1),
        "spectra-chart": charts.spectra(list(dict.fromkeys(linears["type"]))),
    }
    if experts := data["experts"]:
        types = list(dict.fromkeys(experts["type"]))
        made["experts-kept"] = charts.expert_map("kept", "share of parameters kept", experts, "cell", types)
        made["experts-tokens"] = charts.expert_map("tokens", "calibration tokens", experts, "tokens", types[:1])
    if "bits" in linears:
        made["map-bits"] = charts.heat_map("bits", "bits of a number of the dense linear", linears, largest=8)
    if plan.size and "sizes" in data:
        made["sizes-chart"] = charts.budgets(
            "sizes", "megabytes", "weights on disk, MB", plan.size.used / 1e6, plan.predicted
        )
    if plan.time and "speeds" in data:
        title = f"predicted speed, times the dense model's, for {plan.time.call}"
        made["speeds-chart"] = charts.budgets("speeds", "speedup", title, plan.time.speedup, plan.predicted)
    if None in linears["measured"]:
        made["map-predicted"] = charts.heat_map("predicted", "predicted error", linears)
    else:
        made["agreement"] = charts.agreement(linears)
        made["map-measured"] = charts.heat_map("measured", "measured error", linears)
    return made | {"stages": charts.stages(data["stages"])}


def lead(plan: Plan, account: Account, folder: Path) -> str:
    """The run in a sentence."""
    said = "" if account.held_out is None else account.held_out.sentence()
    quality = said and f"{said[0].upper()}{said[1:]}. "  # capitalize() would write kl
    linears = plan.budget.used / plan.budget.dense
    whole = account.parameters["compressed"] / account.parameters["dense"]
    size = weight_bytes(folder)
    return (
        f"{quality}The decoder blocks' linears keep {linears:.1%} of their parameters, the whole model {whole:.1%}; "
        f"its weights take {megabytes(size)} instead of {megabytes(account.dense_bytes)}."
    )


def sizes(plan: Plan, account: Account, folder: Path) -> list[tuple[str, ...]]:
    """Dense, compressed and share: of the linears, the whole model, and the bytes."""
    pairs = {
        "linears": (plan.budget.dense, plan.budget.used),
        "whole model": (account.parameters["dense"], account.parameters["compressed"]),
        "bytes": (account.dense_bytes, weight_bytes(folder)),
    }
    return [(name, f"{a:,}", f"{b:,}", f"{b / a:.1%}") for name, (a, b) in pairs.items()]


def headline(plan: Plan, account: Account, rows: Sequence[tuple[str, ...]]) -> Facts:
    """The numbers to see first."""
    cut = [one for one in plan.linears.values() if one.rank is not None]
    predicted = root_mean_square(one.relative for one in cut)
    measured = root_mean_square(one.measured for one in cut)
    quality, costs = account.held_out, list[tuple[str, str]]()
    if quality:
        costs = [
            (f"perplexity on held-out text, dense {quality.dense:.2f}", f"{quality.compressed:.2f}"),
            ("nats a token, KL from the dense model", f"{quality.divergence:.4f}"),
        ]
    found = [
        *costs,
        ("of the bytes on disk", rows[2][3]),
        ("of the whole model's parameters", rows[1][3]),
        ("of the linears' parameters", rows[0][3]),
        ("predicted relative error (RMS)", "-" if predicted is None else f"{predicted:.3g}"),
        ("relative error on held-out windows (RMS)", "-" if measured is None else f"{measured:.3g}"),
        ("seconds" + " since it was resumed" * account.resumed, f"{sum(account.seconds.values()):,.1f}"),
        ("peak memory", f"{account.memory / 2**20:,.0f} MiB"),
    ]
    return found


def asked(plan: Plan, account: Account) -> Facts:
    """The settings, for people."""
    record = plan.calibration
    return [
        ("Model", account.model),
        ("Recipe", f"{plan.recipe.name}: {plan.recipe.summary}" if plan.recipe.summary else plan.recipe.name),
        ("Source", plan.recipe.source or "-"),
        asked_size(plan),
        ("Calibration", f"{record['source']}, {record['samples']} windows of {record['window']} tokens"),
        ("Seed", str(record["seed"])),
        ("Special tokens", "at the start of every window" if record["special_tokens"] else "none"),
        ("Rows", "chat messages, rendered by the tokenizer's template" if record.get("chat") else "plain text"),
        ("Computed", f"in {account.computed} on {account.device}; stored in {account.stored}"),
    ]


def asked_size(plan: Plan) -> tuple[str, str]:
    """The budget that was given."""
    if plan.time:
        return "Speed", f"at least {plan.time.asked:g} times the dense model's; {plan.time.sentence()}"
    if plan.size is None:
        return "Keep", f"{plan.keep:g} of the parameters of the blocks' linears"
    ends = ", ".join(f"{name} in {bits} bits" for name, bits in plan.ends.items())
    return "Size", f"{plan.size.allowed:,} bytes of weights; {ends or 'embedding and head as they are'}"


def forms(plan: Plan) -> str:
    """How many linears took which form."""
    counts = Counter(one.form + (f" in {one.bits} bits" if one.bits else "") for one in plan.linears.values())
    return f"{len(plan.linears)} linears: " + ", ".join(f"{count} {form}" for form, count in counts.most_common()) + "."


def command(plan: Plan, account: Account, *words: object) -> str:
    """The command that makes the run again from its plan or its recipe, as `words` say."""
    texts = specs_again(plan.calibration)
    spec = [] if texts == demo.texts_of(account.model) else [word for text in texts for word in ("--calibration", text)]
    where = ["--device", account.device, "--dtype", account.computed]
    return shlex.join(str(word) for word in ("slimrank", "compress", account.model, *words, *spec, *where))


def settled(plan: Plan) -> list[object]:
    """The options that a plan settles, beside its recipe."""
    record = plan.calibration
    words: list[object] = ["--keep", f"{plan.keep:g}"] if plan.size is None else ["--size", plan.size.allowed]
    if plan.time:
        words = ["--speedup", f"{plan.time.asked:g}", "--tokens", plan.time.tokens]
    words += ["--samples", record["samples"], "--window", record["window"], "--seed", record["seed"]]
    words += ["--special-tokens", "window"] if record["special_tokens"] else []
    words += ["--chat"] if record.get("chat") else []
    return words


def fingerprints(plan: Plan, account: Account) -> Facts:
    """Hashes, the rest of what calibration recorded, and the versions."""
    said = {"source", "samples", "window", "seed", "special_tokens", "chat", "texts"}
    found = [(f"Model, {key}", value) for key, value in plan.model.items()]
    found += [(f"Calibration, {key}", str(value)) for key, value in plan.calibration.items() if key not in said]
    found += [(f"Calibration, {text['source']}", text["sha256"]) for text in plan.calibration.get("texts", ())]
    return [*found, *account.versions.items()]


def linear_table(plan: Plan) -> dict[str, Any]:
    """A row per linear, those of many experts left out (see shown_alone)."""
    shown = shown_alone(plan)
    head = ["linear", "form", "rank", "bits", "shape", "parameters", "bytes", "kept", "predicted", "measured"]
    rows = [
        (
            name,
            one.form,
            "-" if one.rank is None else str(one.rank),
            "-" if one.bits is None else str(one.bits),
            f"{one.shape[0]} x {one.shape[1]}",
            f"{one.parameters:,}",
            "-" if one.bytes is None else f"{one.bytes:,}",
            f"{one.parameters / math.prod(one.shape):.3f}",
            f"{one.relative:.4f}",
            "-" if one.measured is None else f"{one.measured:.4f}",
        )
        for name, one in plan.linears.items()
        if name in shown
    ]
    return {"head": head, "rows": rows, "left_out": len(plan.linears) - len(shown)}


def megabytes(count: int) -> str:
    """Bytes as people write them."""
    return f"{count / 1e9:,.2f} GB" if count >= 1e9 else f"{count / 1e6:,.2f} MB"
