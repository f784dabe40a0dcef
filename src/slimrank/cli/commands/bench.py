"""slimrank bench: how fast models run, side by side."""

from typing import Annotated

import typer

from slimrank.cli.options import Device, Dtype, JsonFile
from slimrank.errors import UsageError
from slimrank.store.disk import check_file


def bench(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help="Models; the first one is the baseline.")],
    tokens: Annotated[int, typer.Option(min=1, help="Prompt length in tokens.")] = 512,
    batches: Annotated[str, typer.Option(help="Batch sizes to decode at, separated by commas.")] = "1,8,32",
    steps: Annotated[int, typer.Option(min=1, help="Decoding steps per round.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; the median is reported, after a warm-up.")] = 5,
    optimize: Annotated[bool, typer.Option(help="Prepare all models with slimrank.optimize first.")] = True,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Decode with torch.compile; needs a C++ compiler.")
    ] = False,
    json_file: JsonFile = None,
    device: Device = "auto",
    dtype: Dtype = "bfloat16",
) -> None:
    """Measure prefill, first token, decoding and memory of models in alternation, and say where low rank does not pay.

    Example: slimrank bench demo small --dtype float32
    """
    from slimrank.checkpoint import write_text
    from slimrank.cli import console
    from slimrank.evaluate.speed import Asked, bench
    from slimrank.model.load import load
    from slimrank.serve.optimize import optimize as pack

    if len(set(models)) < len(models):
        raise UsageError(f"MODEL {max(models, key=models.count)} is named twice: name each model once.")
    check_file("--json", json_file)
    asked = Asked(tokens, parse_batches(batches), steps, rounds, compiled)
    loaded = {name: load(name, dtype=dtype, device=device).model for name in models}
    if optimize:
        loaded = {name: pack(model) for name, model in loaded.items()}
    found = bench(loaded, asked, {"device": device, "dtype": dtype, "optimize": optimize}, console.track)
    console.show_bench(found)
    if json_file:
        write_text(json_file, found.to_json())


def parse_batches(text: str) -> tuple[int, ...]:
    """The whole numbers from 1 of a list such as 1,8,32."""
    try:
        batches = tuple(int(part) for part in text.split(","))
    except ValueError:
        batches = ()
    if not batches or min(batches) < 1:
        raise UsageError(f"--batches {text!r} must be whole numbers from 1, separated by commas, such as 1,8,32.")
    return batches
