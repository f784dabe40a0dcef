"""The rows of real.py as a Markdown table."""

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from real_rows import AT_LEAST

KEYS = ("nats_lost", "kl")
Found = dict[tuple[Any, ...], dict[str, Any]]


def table(rows: Sequence[dict[str, Any]], order: Sequence[str], *, seconds: bool = True) -> Iterator[str]:
    """A line a recipe: nats lost and KL by text, the tasks' mean accuracy, each at every keep.

    seconds: also those of a row. Means over seeds. A star: judged on less text than other rows, or on fewer documents.
    """
    found, tasks = largest(rows), sorted({row["part"] for row in rows} - {"texts"})
    keeps = sorted({row["keep"] for row in found.values() if row["recipe"] != "dense"}, reverse=True)
    measured = [row for row in found.values() if row["part"] == "texts"]
    texts = list(measured[0]["texts"]) if measured else []
    yield from dense(found, tasks)
    most = {key: max((row[key] for row in rows if key in row), default=0) for key in AT_LEAST}
    heads = [f"{what} {keep:g}" for what in ("nats", "KL", *(["accuracy"] if tasks else [])) for keep in keeps]
    heads += ["seconds"] if seconds else []
    yield "| recipe | " + " | ".join(heads) + " |"
    yield "|---" * (len(heads) + 1) + "|"
    names = {row["recipe"] for row in rows} - {"dense"}
    labels = {(name, tuple(row["settings"])) for row in found.values() if (name := row["recipe"]) in names}
    for name, settings in sorted(labels, key=lambda one: (place(one[0], order), one)):
        own = [row for row in found.values() if (row["recipe"], tuple(row["settings"])) == (name, settings)]
        cells = [judged([r for r in own if r["keep"] == keep], texts, key, most) for key in KEYS for keep in keeps]
        cells += [accuracy([r for r in own if r["keep"] == keep], tasks, most) for keep in keeps if tasks]
        spent = [row["seconds"] for row in own if row["part"] == "texts" and row["seconds"] is not None]
        label = f"{name} ({', '.join(settings)})" if settings else name
        cells += [f"{statistics.mean(spent):.0f}" if spent else "-"] if seconds else []
        yield f"| {label} | {' | '.join(cells)} |"
    scored = f" Accuracy: the mean of {len(tasks)} tasks." if tasks else ""
    yield f"\nNats lost and KL(dense || recipe) a token: {' / '.join(texts)}.{scored}"


def largest(rows: Sequence[dict[str, Any]]) -> Found:
    """Of the rows of one part the one that was judged on most."""
    found: Found = {}
    for row in rows:
        key = (row["recipe"], row["keep"], row["seed"], tuple(row["settings"]), row["part"])
        if key not in found or amount(row) > amount(found[key]):
            found[key] = row
    return found


def amount(row: dict[str, Any]) -> int:
    """Windows or documents that a row was judged on at most."""
    return next(row[key] for key in AT_LEAST if key in row)


def place(name: str, order: Sequence[str]) -> int:
    """Where a recipe stands in the table."""
    return order.index(name) if name in order else len(order)


def dense(found: Found, tasks: Sequence[str]) -> Iterator[str]:
    """What the dense model makes of the texts and tasks, in a line."""
    own = [row for row in found.values() if row["recipe"] == "dense"]
    said = [
        f"{read['perplexity']:.2f} ± {read['perplexity_stderr'] or 0:.2f} on {text}"
        for row in own
        if row["part"] == "texts"
        for text, read in row["texts"].items()
    ]
    if said:
        scored = f"; accuracy {accuracy(own, tasks, {})}" if tasks else ""
        yield f"Dense: perplexity {', '.join(said)}{scored}.\n"


def judged(rows: Sequence[dict[str, Any]], texts: Sequence[str], key: str, most: dict[str, int]) -> str:
    """A figure of each text, the mean over seeds."""
    own = [row for row in rows if row["part"] == "texts"]
    if not own:
        return "-"
    figures = [[row["texts"][text][key] for row in own] for text in texts]
    told = ["-" if None in values else f"{statistics.mean(values):.3f}" for values in figures]
    return " / ".join(told) + star(own, most)


def accuracy(rows: Sequence[dict[str, Any]], tasks: Sequence[str], most: dict[str, int]) -> str:
    """The tasks' mean accuracy, over seeds too; a dash unless all of them are there."""
    own = [row for row in rows if "acc" in row.get("metrics", {})]
    by_task = [[row["metrics"]["acc"]["value"] for row in own if row["part"] == task] for task in tasks]
    if not tasks or not all(by_task):
        return "-"
    return f"{statistics.mean(statistics.mean(values) for values in by_task):.3f}" + star(own, most)


def star(rows: Sequence[dict[str, Any]], most: dict[str, int]) -> str:
    """A star where a row was judged on less than others."""
    return "*" if any(row[key] < value for row in rows for key, value in most.items() if key in row) else ""
