"""slimrank compare: many recipes on one model."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank import demo
from slimrank.cli.options import Calibration, Device, Dtype, Model, Refine, Samples, Seed, Settings, Window, one_or_all
from slimrank.errors import UsageError

NO_MATTER = {"out", "resume", "memory"}  # to the rows


def compare(
    context: typer.Context,
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
    refine: Refine = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for compare.json and report.html; compare.partial.json until all rows are done."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on where a stopped comparison in --out was, or begin anew."),
    ] = True,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to stay within with --out; by default what is free.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Compare recipes on one model, calibrating once; nothing is written unless --out says where.

    With --out the model is read from its files a block at a time, and the same command goes on after a kill.

    --set is for all recipes, or for one of them: --set dipsvd-bo:allocate.trials=60.

    Example: slimrank compare demo --recipes svd,svd-llm --keep 0.8,0.6
    """
    from slimrank.calibrate import read_text
    from slimrank.checkpoint import write_text
    from slimrank.cli import console
    from slimrank.recipe import load_recipe, settings_by_recipe
    from slimrank.run.compare import compare
    from slimrank.run.rows import to_json
    from slimrank.runtime.memory import parse_size
    from slimrank.texts.reading import Reading

    names = recipes.split(",")
    chosen = [load_recipe(name, own, refine) for name, own in settings_by_recipe(names, settings or ()).items()]
    keeps = parse_keeps(keep)
    specs = text or demo.texts_of(model)
    if not specs:
        raise UsageError("--text is missing: give a text to evaluate on, such as test.txt.")
    texts = [read_text(spec, part="evaluation") for spec in specs]
    reading = Reading(one_or_all(calibration), samples, window, seed)
    size = None if memory is None else parse_size(memory)
    if memory and not out:
        raise UsageError("--memory needs --out: what has no room in memory is kept there.")
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
        model, [(recipe, keep) for recipe in chosen for keep in keeps], texts, reading,
        max_windows=max_windows, special_tokens=special_tokens, device=device, dtype=dtype,
        out=out, resume=resume, memory=size, announce=console.show_estimate, track=console.track,
    ):  # fmt: skip
        rows.append(row)
        console.err.print(f"{row.recipe} {row.keep:g}: done in {row.seconds:.1f} s")
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
        raise UsageError(f"--keep {text} must be above 0 and at most 1: it is the share of parameters that stays.")
    return keeps


def words(context: typer.Context) -> list[str]:
    """What to type after the command's name for the same rows, defaults written out."""
    found: list[str] = []
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if parameter.name in NO_MATTER:
            continue
        if parameter.param_type_name == "argument":
            found.append(str(value))
        elif isinstance(value, bool):
            found.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        elif value is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            found += [word for one in values for word in (parameter.opts[0], str(one))]
    return found
