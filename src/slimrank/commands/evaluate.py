"""slimrank evaluate: what models are worth, side by side."""

from typing import Annotated

import typer

from slimrank.options import Device, Dtype, JsonFile, Window


def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models; nats lost count against the first.")],
    text: Annotated[
        list[str] | None, typer.Option(help="Text to evaluate on, as --calibration; may be repeated.")
    ] = None,
    window: Window = None,
    max_windows: Annotated[int | None, typer.Option(min=1, help="Only the first windows.")] = None,
    special_tokens: Annotated[bool, typer.Option(help="The tokenizer's default special tokens (BOS).")] = True,
    json_file: JsonFile = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Perplexity, nats lost, parameters and bytes of models, side by side.

    Example: slimrank evaluate demo small --text demo
    """
    from slimrank import console
    from slimrank.checkpoint import write_text
    from slimrank.evaluate import evaluate_models, to_json

    results = evaluate_models(
        models, text or [], window=window, max_windows=max_windows, special_tokens=special_tokens,
        device=device, dtype=dtype, track=console.track,
    )  # fmt: skip
    console.show_evaluation(results)
    if json_file:
        write_text(json_file, to_json(results))
