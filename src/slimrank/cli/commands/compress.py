"""slimrank compress: from a model to a smaller checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import (
    IN_PLAN,
    Bits,
    Calibration,
    Chat,
    Device,
    Dtype,
    Keep,
    Memory,
    Model,
    Only,
    Overwrite,
    RecipeName,
    Refine,
    Resume,
    Samples,
    Seed,
    Settings,
    Size,
    Skip,
    SpecialTokens,
    Speedup,
    Tokens,
    Window,
    chosen_linears,
    marked,
)
from slimrank.errors import UsageError


def compress(
    context: typer.Context,
    model: Model,
    recipe: RecipeName = "slimrank",
    keep: Keep = None,
    size: Size = None,
    bits: Bits = None,
    speedup: Speedup = None,
    tokens: Tokens = None,
    calibration: Calibration = None,
    samples: Samples = 256,
    window: Window = None,
    seed: Seed = 3,
    settings: Settings = None,
    refine: Refine = None,
    only: Only = None,
    skip: Skip = None,
    chat: Chat = False,
    special_tokens: SpecialTokens = "none",
    plan: Annotated[Path | None, typer.Option(help="Apply this plan, with its recipe, budget and calibration.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the checkpoint; by default MODEL-RECIPE-KEEP.")] = None,
    overwrite: Overwrite = False,
    resume: Resume = True,
    memory: Memory = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Compress MODEL and write a checkpoint that loads like any other.

    Example: slimrank compress demo --keep 0.6 --out small

    Example: slimrank compress demo --size 3MB --out small

    Example: slimrank compress llama-7b --speedup 1.5 --calibration text.txt --out fast

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

    room = None if memory is None else parse_size(memory)
    chosen = Plan.load(plan) if plan else None
    if chosen:
        refuse_settled(context)
    spent = size or (f"{bits:g}bit" if bits else f"{speedup:g}x" if speedup else "")
    spent = spent or f"{chosen.keep if chosen else 0.8 if keep is None else keep:g}"
    whole = chosen.recipe if chosen else load_recipe(recipe, settings or (), refine)
    out = out or Path("-".join([Path(model).resolve().name.removesuffix(".gguf"), whole.name, spent]))
    with joined(device) as world:
        result = compress(
            model, whole, keep=keep, size=size, bits=bits, speedup=speedup, tokens=tokens,
            calibration=calibration, samples=samples, window=window, seed=seed,
            filter=chosen_linears(only, skip), plan=chosen, chat=chat, special_tokens=special_tokens == "window",
            device=device, dtype=dtype,
            out=out, overwrite=overwrite, resume=resume, memory=room, world=world,
            announce=console.show_estimate if world.main else silent, track=console.track if world.main else no_track,
        )  # fmt: skip
        if world.main:
            console.show_result(result, weight_bytes(out))
            console.out.print(f"\nWritten to {out}")
            console.write_report(out)


def refuse_settled(context: typer.Context) -> None:
    """Raise a UsageError where an option was given whose value the plan has."""
    names = marked(compress, IN_PLAN)
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name in names and getattr(context.get_parameter_source(option.name), "name", "") != "DEFAULT"
    ]
    if given:
        raise UsageError(f"--plan already sets {', '.join(given)}: leave out one of the two, or edit the plan.")
