"""slimrank evaluate: quality and size of models, side by side."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import Device, Dtype, JsonFile, MaxWindows, SpecialTokensOfText, Texts, Window
from slimrank.errors import UsageError
from slimrank.store.disk import check_file


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Models; the others are compared with the first.")
    ],
    text: Texts = None,
    window: Window = None,
    max_windows: MaxWindows = None,
    special_tokens: SpecialTokensOfText = "text",
    tasks: Annotated[str | None, typer.Option(help="lm-eval tasks, separated by commas.")] = None,
    tasks_path: Annotated[Path | None, typer.Option(help="Folder with your own task files (YAML).")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use the first items of each task only.")] = None,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Measure perplexity, loss in nats, task scores, parameters and bytes of models, side by side.

    Example: slimrank evaluate demo small --text demo

    Example: slimrank evaluate MODEL small --tasks piqa,arc_easy --json scores.json
    """
    from slimrank.checkpoint import write_text
    from slimrank.cli import console
    from slimrank.evaluate import evaluate_models, to_json

    if not tasks and (tasks_path or limit):
        raise UsageError(
            f"{'--tasks-path' if tasks_path else '--limit'} needs --tasks: name some tasks, or leave it out."
        )
    check_file("--json", json_file)
    results = evaluate_models(
        models, text or [], window=window, max_windows=max_windows, special_tokens=special_tokens,
        device=device, dtype=dtype, tasks=[name for name in (tasks or "").split(",") if name], tasks_path=tasks_path,
        limit=limit, track=console.track,
    )  # fmt: skip
    console.show_evaluation(results)
    if json_file:
        write_text(json_file, to_json(results))
