"""The commands: each a thin function that parses, calls the library and shows the outcome."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from slimrank.errors import SlimrankError, UsageError
from slimrank.options import (
    Calibration,
    Chat,
    Device,
    Dtype,
    JsonFile,
    Keep,
    Model,
    RecipeName,
    Samples,
    Seed,
    Settings,
    SpecialTokens,
    Window,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Compress Hugging Face causal language models by SVD, with an honest account of what it costs.",
)


@app.callback(invoke_without_command=True)
def options(
    debug: Annotated[bool, typer.Option(help="Show the traceback of an error.")] = False,
    show_version: Annotated[bool, typer.Option("--version", help="Print versions and stop.")] = False,
) -> None:
    """Options of every command."""
    if show_version:
        names = ("slimrank", "torch", "transformers", "safetensors")
        typer.echo("  ".join(f"{name} {version(name)}" for name in names))
        raise typer.Exit


@app.command()
def compress(
    model: Model,
    recipe: RecipeName = "slimrank",
    keep: Keep = 0.8,
    calibration: Calibration = None,
    samples: Samples = 256,
    window: Window = None,
    seed: Seed = 3,
    settings: Settings = None,
    plan: Annotated[Path | None, typer.Option(help="Apply this plan; its recipe and budget hold.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the checkpoint; by default MODEL-RECIPE-KEEP.")] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace what --out holds, once the new checkpoint is whole.")
    ] = False,
    chat: Chat = False,
    special_tokens: SpecialTokens = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Compress MODEL and write a checkpoint that loads like any other.

    Example: slimrank compress demo --keep 0.6 --out small
    """
    from slimrank import console
    from slimrank.checkpoint import check_free
    from slimrank.compression import compress
    from slimrank.evaluate import weight_bytes
    from slimrank.plan import Plan

    chosen = Plan.load(plan) if plan else None
    out = out or Path(f"{Path(model).name}-{chosen.recipe.name if chosen else Path(recipe).stem}-{keep:g}")
    check_free(out, overwrite)
    result = compress(
        model, recipe, keep=keep, calibration=calibration, samples=samples, window=window, seed=seed,
        settings=settings or (), plan=chosen, chat=chat, special_tokens=special_tokens, device=device, dtype=dtype,
        track=console.track,
    )  # fmt: skip
    result.save(out, overwrite=overwrite)
    console.show_result(result, weight_bytes(out))
    console.out.print(f"\nWritten to {out}", highlight=False)


@app.command()
def plan(
    model: Model,
    out: Annotated[Path, typer.Option(help="The plan's file.")],
    recipe: RecipeName = "slimrank",
    keep: Keep = 0.8,
    calibration: Calibration = None,
    samples: Samples = 256,
    window: Window = None,
    seed: Seed = 3,
    settings: Settings = None,
    chat: Chat = False,
    special_tokens: SpecialTokens = False,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Do everything up to the plan, and write that: a JSON file to read, edit, and give to `compress --plan`.

    Example: slimrank plan demo --keep 0.6 --out plan.json
    """
    from slimrank import console
    from slimrank.checkpoint import write_text
    from slimrank.compression import compress

    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist.")
    result = compress(
        model, recipe, keep=keep, calibration=calibration, samples=samples, window=window, seed=seed,
        settings=settings or (), plan_only=True, chat=chat, special_tokens=special_tokens, device=device, dtype=dtype,
        track=console.track,
    )  # fmt: skip
    write_text(out, result.plan.to_json())
    console.show_plan(result.plan)
    console.out.print(f"Written to {out}", highlight=False)


@app.command()
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


@app.command()
def compare(
    model: Model,
    recipes: Annotated[str, typer.Option(help="Recipes, separated by commas.")],
    keep: Annotated[str, typer.Option(help="Shares of parameters that stay, separated by commas.")] = "0.8,0.6,0.4",
    text: Annotated[
        list[str] | None, typer.Option(help="Text to evaluate on, as --calibration; may be repeated.")
    ] = None,
    calibration: Calibration = None,
    samples: Samples = 256,
    window: Window = None,
    max_windows: Annotated[int | None, typer.Option(min=1, help="Evaluate on the first windows only.")] = None,
    special_tokens: Annotated[bool, typer.Option(help="Evaluate with the tokenizer's default special tokens.")] = True,
    seed: Seed = 3,
    settings: Settings = None,
    out: Annotated[Path | None, typer.Option(help="Folder for compare.json and the pictures.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
) -> None:
    """Compare recipes on one model, calibrating once; nothing is written unless --out says where.

    Example: slimrank compare demo --recipes svd,svd-llm --keep 0.8,0.6
    """
    from slimrank import console
    from slimrank.calibrate import read_text
    from slimrank.calibrate.reading import Reading
    from slimrank.checkpoint import write_text
    from slimrank.compare import compare, to_json
    from slimrank.load import load
    from slimrank.recipe import load_recipe
    from slimrank.report import perplexity_picture, ranks_picture

    chosen = [load_recipe(name, settings or ()) for name in recipes.split(",")]
    keeps = parse_keeps(keep)
    if not text and model != "demo":
        raise UsageError("--text is missing: give a text to evaluate on, such as test.txt.")
    texts = [read_text(spec, part="evaluation") for spec in text or ["demo"]]
    reading = Reading(calibration, samples, window, seed)
    loaded = load(model, dtype=dtype, device=device)
    rows = []
    for row in compare(
        loaded, chosen, keeps, texts, reading,
        max_windows=max_windows, special_tokens=special_tokens, track=console.track,
    ):  # fmt: skip
        rows.append(row)
        console.err.print(f"{row.recipe} {row.keep:g}: done in {row.seconds:.1f} s", highlight=False)
    console.show_comparison(rows)
    if out:
        out.mkdir(parents=True, exist_ok=True)
        asked = {"model": model, "recipes": [r.name for r in chosen], "set": settings or [], "reading": vars(reading)}
        write_text(out / "compare.json", to_json(rows, asked | {"max_windows": max_windows}))
        perplexity_picture(rows, out / "perplexity.png")
        ranks_picture(rows, out / "ranks.png")
        console.out.print(f"Written to {out}: compare.json, perplexity.png, ranks.png", highlight=False)


def parse_keeps(text: str) -> list[float]:
    """The numbers of a list such as 0.8,0.6."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--keep {text!r} must be numbers separated by commas, such as 0.8,0.6.") from error


@app.command()
def recipes(name: Annotated[str | None, typer.Argument(help="Print this one, with every default.")] = None) -> None:
    """List the shipped recipes, or print one."""
    from slimrank import console
    from slimrank.recipe import load_recipe, shipped_recipes

    if name:
        typer.echo(load_recipe(name).to_yaml(), nl=False)
        return
    shipped = [load_recipe(n) for n in shipped_recipes()]
    console.table(["recipe", "what it does"], [(r.name, r.summary) for r in shipped])


def main() -> None:
    """The console entry point: errors become one sentence and an exit status."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # its retries are not news, its failures become our sentence
    debug = "--debug" in sys.argv
    try:
        app(standalone_mode=True)
    except SlimrankError as error:
        if debug:
            raise
        _fail(str(error), error.status)
    except SystemExit as stop:
        if stop.code == 130:  # how typer ends on Ctrl-C
            _fail("Stopped by Ctrl-C; nothing was written.", 130)
        raise
    except OSError as error:
        if debug:
            raise
        _fail(f"{error.filename or 'The disk'}: {error.strerror or error}.", 1)
    except MemoryError:
        _fail("Out of memory: use fewer --samples or a shorter --window.", 1)


def _fail(message: str, status: int) -> None:
    from slimrank import console

    console.error(message)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
