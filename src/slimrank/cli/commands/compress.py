"""slimrank compress: from a model to a smaller checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import (
    Calibration,
    Chat,
    Device,
    Dtype,
    Keep,
    Model,
    RecipeName,
    Refine,
    Samples,
    Seed,
    Settings,
    SpecialTokens,
    Window,
)
from slimrank.errors import UsageError

SETTLED = {"recipe", "keep", "samples", "window", "seed", "settings", "refine", "chat", "special_tokens"}  # by a plan


def compress(
    context: typer.Context,
    model: Model,
    recipe: RecipeName = "slimrank",
    keep: Keep = 0.8,
    calibration: Calibration = None,
    samples: Samples = 256,
    window: Window = None,
    seed: Seed = 3,
    settings: Settings = None,
    refine: Refine = None,
    plan: Annotated[Path | None, typer.Option(help="Apply this plan; its recipe and budget hold.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the checkpoint; by default MODEL-RECIPE-KEEP.")] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace what --out holds, once the new checkpoint is whole.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on where a stopped run of the same command was, or begin anew."),
    ] = True,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to stay within, such as 8GiB; by default what is free.")
    ] = None,
    chat: Chat = False,
    special_tokens: SpecialTokens = False,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Compress MODEL and write a checkpoint that loads like any other.

    Example: slimrank compress demo --keep 0.6 --out small

    On several devices: torchrun --nproc-per-node 2 -m slimrank compress demo --out small
    """
    from slimrank.cli import console
    from slimrank.evaluate import weight_bytes
    from slimrank.plan import Plan
    from slimrank.recipe import load_recipe
    from slimrank.run.compress import compress
    from slimrank.run.estimate import silent
    from slimrank.runtime.memory import parse_size
    from slimrank.runtime.track import no_track
    from slimrank.runtime.world import joined

    size = None if memory is None else parse_size(memory)
    chosen = Plan.load(plan) if plan else None
    if chosen:
        refuse_settled(context)
    whole = chosen.recipe if chosen else load_recipe(recipe, settings or (), refine)
    keep = chosen.keep if chosen else keep
    out = out or Path(f"{Path(model).resolve().name.removesuffix('.gguf')}-{whole.name}-{keep:g}")
    with joined(device) as world:
        result = compress(
            model, whole, keep=keep, calibration=calibration, samples=samples, window=window, seed=seed,
            plan=chosen, chat=chat, special_tokens=special_tokens, device=device, dtype=dtype,
            out=out, overwrite=overwrite, resume=resume, memory=size, world=world,
            announce=console.show_estimate if world.main else silent, track=console.track if world.main else no_track,
        )  # fmt: skip
        if world.main:
            console.show_result(result, weight_bytes(out))
            console.out.print(f"\nWritten to {out}")
            console.write_report(out)


def refuse_settled(context: typer.Context) -> None:
    """Raise a UsageError where an option was given that --plan settles."""
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name in SETTLED and getattr(context.get_parameter_source(option.name), "name", "") != "DEFAULT"
    ]
    if given:
        raise UsageError(f"--plan settles {', '.join(given)} already: give it alone, or change what the plan says.")
