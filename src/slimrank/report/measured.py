"""Tables from what `slimrank evaluate` and `slimrank bench` wrote with --json."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from slimrank.errors import UsageError
from slimrank.evaluate.likeness import Distance
from slimrank.texts.tokens import WHERE

TEXT_HEAD = ("perplexity", "nats lost", "KL")
Table = tuple[str, list[str], list[list[str]]]


@contextmanager
def understood(*files: Path) -> Iterator[None]:
    """A UsageError that names the files, where what was read from them turns out to be no work of slimrank's."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, TemplateError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        names = " and ".join(str(file) for file in files)
        raise UsageError(
            f"{names} can't be shown ({reason}): give what slimrank wrote, or have it made again."
        ) from error


def read_json(path: Path, key: str) -> dict[str, Any]:
    """A JSON object with `key` in it.

    Raises:
        UsageError: naming the file.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} can't be read as JSON ({error}): give a file that slimrank wrote.") from error
    if not isinstance(found, dict) or key not in found:
        raise UsageError(f"{path} has no {key!r} in it: give a file that slimrank wrote.")
    return found


def evaluation_tables(path: Path) -> list[Table]:
    """A table per text, and one of all tasks where some ran."""
    models = read_json(path, "models")["models"]
    tables = []
    for text in models[0]["texts"] if models else ():
        read = models[0]["texts"][text]
        there = [model for model in models if text in model["texts"]]
        far = [_distance(model["texts"][text]) for model in there]
        rows = [
            _text_row(model, model["texts"][text], [own] if any(far) else [])
            for model, own in zip(there, far, strict=True)
        ]
        special = WHERE.get(read.get("special_tokens"), "")
        caption = f"{text}: {read['windows']} windows of {read['window']} tokens{special and ', ' + special}"
        head = ["model", *TEXT_HEAD, *(["distance"] if any(far) else []), "parameters", "bytes"]
        tables.append((caption, head, rows))
    scored = [
        [
            name,
            metric,
            str(task["items"]),
            str(task["shots"]),
            *(_score(m["tasks"][name]["metrics"][metric]) for m in models),
        ]
        for name, task in (models[0].get("tasks", {}) if models else {}).items()
        for metric in task["metrics"]
    ]
    if scored:
        tables.append(("Tasks", ["task", "metric", "items", "examples", *(model["name"] for model in models)], scored))
    return tables


def _score(score: dict[str, Any]) -> str:
    return f"{score['value']:.4f}" + ("" if score["stderr"] is None else f" ± {score['stderr']:.4f}")


def evaluation_notes(path: Path) -> list[str]:
    """What the evaluation says beside its tables, a sentence each."""
    return [note for model in read_json(path, "models")["models"] for note in model.get("notes", ())]


def _text_row(model: dict[str, Any], found: dict[str, Any], more: list[str]) -> list[str]:
    sizes = [f"{model['parameters']['model']:,}", f"{model['bytes']:,}"]
    return [model["name"], *text_cells(found), *more, *sizes]


def _distance(found: dict[str, Any]) -> str:
    """From the calibration text, and the usual one; empty where it is not known."""
    value, usual = found.get("distance"), found.get("distance_usual")
    return "" if value is None else Distance(value, usual).told()


def text_cells(found: dict[str, Any]) -> list[str]:
    """Perplexity, nats lost and KL of what a model made of a text, with the standard errors that the file has."""
    perplexity = _with_error(found, "perplexity", ".3f") or "beyond a float"
    return [perplexity, _with_error(found, "nats_lost", "+z.4f") or "-", _with_error(found, "kl", "z.4f") or "-"]


def _with_error(found: dict[str, Any], key: str, spec: str) -> str:
    """Empty where it is not known."""
    value, stderr = found.get(key), found.get(f"{key}_stderr")
    if value is None:
        return ""
    return f"{value:{spec}}" + ("" if stderr is None else f" ± {stderr:{spec.lstrip('+')}}")


def speed_table(path: Path) -> dict[str, Any]:
    """Medians by model: prefill, first token, decoding by batch, memory."""
    found = read_json(path, "models")
    models, settings = found["models"], found["settings"]
    batches = list(models[0]["decode"])
    head = ["model", f"prefill of {settings['tokens']}, ms", "first token, ms"]
    head += [f"decode {batch}, tokens/s" for batch in batches] + ["weights, bytes", "peak, bytes"]
    rows = [
        [
            model["name"],
            f"{1e3 * model['prefill']:.1f}",
            f"{1e3 * model['first']:.1f}",
            *(f"{int(batch) / model['decode'][batch]:,.1f}" for batch in batches),
            f"{model['weights']:,}",
            f"{model['peak']:,}" if model["peak"] else "-",
        ]
        for model in models
    ]
    caption = "Medians, all models in one run: " + ", ".join(f"{key} {value}" for key, value in settings.items()) + "."
    return {"caption": caption, "head": head, "rows": rows, "notes": found.get("notes", [])}
