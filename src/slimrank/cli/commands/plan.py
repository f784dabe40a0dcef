"""slimrank plan: everything up to the plan."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import (
    Bits,
    Calibration,
    Chat,
    Device,
    Dtype,
    Keep,
    Model,
    Only,
    RecipeName,
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
)
from slimrank.store.disk import check_file


def plan(
    model: Model,
    out: Annotated[Path, typer.Option(help="File to write the plan to.")],
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
    only: Only = None,
    skip: Skip = None,
    resume: Annotated[
        bool,
        typer.Option("--resume/--fresh", help="Go on where a stopped run of the same command was, or begin anew."),
    ] = True,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Memory to stay within, such as 8GiB; by default what is free.")
    ] = None,
    chat: Chat = False,
    special_tokens: SpecialTokens = "none",
    device: Device = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Calibrate, choose every linear's rank, and write that plan as JSON, to edit and give to `compress --plan`.

    With --size or --bits it chooses bits too, and shows what other sizes would lose; with --speedup, other speeds.

    Example: slimrank plan demo --keep 0.6 --out plan.json

    Example: slimrank plan demo --size 3MB --out plan.json
    """
    from slimrank.cli import console
    from slimrank.run.compress import compress
    from slimrank.runtime.memory import parse_size

    check_file("--out", out)
    result = compress(
        model, recipe, keep=keep, size=size, bits=bits, speedup=speedup, tokens=tokens,
        calibration=calibration, samples=samples, window=window, seed=seed,
        settings=settings or (), filter=chosen_linears(only, skip), plan_only=True, chat=chat,
        special_tokens=special_tokens == "window", device=device, dtype=dtype, out=out, overwrite=True,
        memory=None if memory is None else parse_size(memory), resume=resume,
        announce=console.show_estimate, track=console.track,
    )  # fmt: skip
    console.show_plan(result.plan)
    console.out.print(f"Written to {out}")
