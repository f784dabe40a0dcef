"""slimrank evaluate: what models are worth, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import Device, Dtype, JsonFile, Window
from slimrank.cli.output import check_file
from slimrank.errors import UsageError


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models; nats lost count against the first.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Text to evaluate on, as --calibration; may be repeated.")
    ] = None,
    window: Window = None,
    max_windows: Annotated[int | None, typer.Option(min=1, help="Only the first windows.")] = None,
    special_tokens: Annotated[bool, typer.Option(help="The tokenizer's default special tokens (BOS).")] = True,
    tasks: Annotated[str | None, typer.Option(help="Tasks of lm-eval, separated by commas.")] = None,
    tasks_path: Annotated[Path | None, typer.Option(help="Folder with task files (YAML) of your own.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first items of each task.")] = None,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Perplexity, nats lost, task scores, parameters and bytes of models, side by side.

    Example: slimrank evaluate demo small --text demo

    Example: slimrank evaluate MODEL small --tasks piqa,arc_easy --json scores.json
    """
    from slimrank.checkpoint import write_text
    from slimrank.cli import console
    from slimrank.evaluate import evaluate_models, to_json

    if not tasks and (tasks_path or limit):
        raise UsageError(f"{'--tasks-path' if tasks_path else '--limit'} is for --tasks: name some, or leave it out.")
    check_file("--json", json_file)
    results = evaluate_models(
        models, text or [], window=window, max_windows=max_windows, special_tokens=special_tokens,
        device=device, dtype=dtype, tasks=[name for name in (tasks or "").split(",") if name], tasks_path=tasks_path,
        limit=limit, track=console.track,
    )  # fmt: skip
    console.show_evaluation(results)
    if json_file:
        write_text(json_file, to_json(results))
