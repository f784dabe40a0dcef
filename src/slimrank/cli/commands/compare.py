"""slimrank compare: many recipes on one model."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank import demo
from slimrank.cli.options import (
    NO_EFFECT,
    Calibration,
    Device,
    Dtype,
    MaxWindows,
    Memory,
    Model,
    Refine,
    Resume,
    Samples,
    Seed,
    Settings,
    SpecialTokensOfText,
    Texts,
    Window,
    marked,
    one_or_all,
)
from slimrank.errors import UsageError


def compare(
    context: typer.Context,
    model: Model,
    recipes: Annotated[str, typer.Option(help="Recipes, separated by commas.")],
    keep: Annotated[str, typer.Option(help="Shares of parameters to keep, separated by commas.")] = "0.8,0.6,0.4",
    sizes: Annotated[
        str | None,
        typer.Option(
            metavar="SIZES", help="Most bytes on disk, such as 90MB,75MB, for recipes that can choose bits; not --keep."
        ),
    ] = None,
    text: Texts = None,
    calibration: Calibration = None,
    samples: Samples = 256,
    window: Window = None,
    max_windows: MaxWindows = None,
    special_tokens: SpecialTokensOfText = "text",
    seed: Seed = 3,
    settings: Settings = None,
    refine: Refine = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for compare.json and report.html; compare.partial.json until all rows are done."),
        NO_EFFECT,
    ] = None,
    resume: Resume = True,
    memory: Memory = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Compare recipes on one model, calibrated once; nothing is written without --out.

    With --sizes a recipe that can spend bytes has a row for each size, others go by --keep; one that cuts nothing, such
    as gptq, has one row.

    With --out the model is read from its files block by block, and the same command resumes an interrupted run.

    --set applies to all recipes, or to one: --set dipsvd-bo:allocate.trials=60.

    Example: slimrank compare demo --recipes svd,svd-llm --keep 0.8,0.6

    Example: slimrank compare demo --recipes slimrank,gptq --sizes 3MB,2.5MB
    """
    from slimrank.calibrate import read_text
    from slimrank.checkpoint import write_text
    from slimrank.cli import console
    from slimrank.recipe import load_recipe, settings_by_recipe
    from slimrank.run.compare import compare, runs_of
    from slimrank.run.rows import spent, to_json
    from slimrank.runtime.memory import parse_size
    from slimrank.texts.reading import Reading

    names = recipes.split(",")
    chosen = [load_recipe(name, own, refine) for name, own in settings_by_recipe(names, settings or ()).items()]
    keeps, bytes_ = parse_keeps(keep), [parse_size(part, "--sizes") for part in sizes.split(",")] if sizes else []
    if bytes_ and not any(recipe.allocate.spends for recipe in chosen):
        raise UsageError(f"--sizes is for recipes that choose bits, and none of {recipes} does: add one, as slimrank.")
    specs = text or demo.texts_of(model)
    if not specs:
        raise UsageError("--text is missing: give a text to evaluate on, such as test.txt.")
    texts = [read_text(spec, part="evaluation") for spec in specs]
    reading = Reading(one_or_all(calibration), samples, window, seed)
    limit = None if memory is None else parse_size(memory)
    if memory and not out:
        raise UsageError("--memory needs --out, the folder for what does not fit in memory.")
    asked = {
        "model": model,
        "recipes": [recipe.name for recipe in chosen],
        "set": settings or [],
        "reading": vars(reading),
        "max_windows": max_windows,
        "special_tokens": special_tokens,
        "device": device,
        "dtype": dtype,
        "command": ["slimrank", "compare", *words(context)],
    }
    rows = []
    if out:
        out.mkdir(parents=True, exist_ok=True)
    for row in compare(
        model, [run for recipe in chosen for run in runs_of(recipe, keeps, bytes_)], texts, reading,
        max_windows=max_windows, special_tokens=special_tokens, device=device, dtype=dtype,
        out=out, resume=resume, memory=limit, announce=console.show_estimate, track=console.track,
    ):  # fmt: skip
        rows.append(row)
        console.err.print(f"{row.recipe} {row.budget}: done, seconds: {spent(row.seconds)}")
        if out:  # anew after each row: one that fails takes neither the others with it nor an earlier comparison
            write_text(out / "compare.partial.json", to_json(rows, asked))
    console.show_comparison(rows)
    if out:
        (out / "compare.partial.json").replace(out / "compare.json")
        console.out.print(f"Written to {out / 'compare.json'}")
        console.write_report(out)


def parse_keeps(text: str) -> list[float]:
    """The numbers of a list such as 0.8,0.6."""
    try:
        keeps = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--keep {text!r} must be numbers separated by commas, such as 0.8,0.6.") from error
    if not all(0 < keep <= 1 for keep in keeps):
        raise UsageError(f"--keep {text} must be above 0 and at most 1: it is the share of parameters to keep.")
    return keeps


def words(context: typer.Context) -> list[str]:
    """The arguments that give the same rows, defaults written out."""
    found, left_out = list[str](), marked(compare, NO_EFFECT)
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in left_out:
            continue
        if parameter.param_type_name == "argument":
            found.append(str(value))
        elif isinstance(value, bool):
            found.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        elif value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            found += [word for one in values for word in (parameter.opts[0], str(one))]
    return found
