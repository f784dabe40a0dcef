"""Options that several commands share, and what marks them."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

import typer

from slimrank.errors import UsageError

IN_PLAN = "recorded in a plan"  # marks an option whose value a plan has
NO_EFFECT = "no effect on results"  # marks an option that says where or how to run, and changes no number


def marked(command: Callable[..., Any], mark: str) -> set[str]:
    """The names of the command's parameters that carry this mark."""
    hints = get_type_hints(command, include_extras=True)
    return {name for name, hint in hints.items() if mark in getattr(hint, "__metadata__", ())}


def _named(calibration: list[str] | None) -> list[str] | None:
    if "" in (calibration or ()):
        raise UsageError("--calibration is empty: give a text such as train.txt, or `demo`.")
    return calibration


def one_or_all(calibration: list[str] | None) -> str | list[str] | None:
    """One text by itself, as in what was written before there could be several."""
    return calibration[0] if calibration and len(calibration) == 1 else calibration or None


def chosen_linears(only: list[str] | None, skip: list[str] | None) -> Any:
    """The filter that --only and --skip mean, None where neither is given."""
    from slimrank.model.globs import Globs

    return Globs(only or (), skip or ()) if only or skip else None


def _placed(context: typer.Context, device: str) -> str:
    if device != "auto" or context.resilient_parsing:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


Model = Annotated[str, typer.Argument(help="Hub id, local directory, .gguf file, or `demo`, the embedded model.")]
RecipeName = Annotated[
    str, typer.Option("--recipe", help="A shipped recipe (see `slimrank recipes`) or a YAML file."), IN_PLAN
]
Keep = Annotated[
    float | None,
    typer.Option(help="Share of the linears' parameters to keep, in (0, 1]; by default 0.8, and no bits are chosen."),
    IN_PLAN,
]
Size = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Instead: the most bytes on disk, e.g. 90MB; bits are then chosen beside ranks."),
    IN_PLAN,
]
Bits = Annotated[
    float | None, typer.Option(help="Instead: the mean bits of all the model's numbers, e.g. 4.0."), IN_PLAN
]
Speedup = Annotated[
    float | None,
    typer.Option(help="Instead: how many times as fast as dense on this device, e.g. 1.5; layers are timed first."),
    IN_PLAN,
]
Tokens = Annotated[
    int | None,
    typer.Option(help="What --speedup is for: tokens at once, 1 for decoding; by default 512, a prefill."),
    IN_PLAN,
]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        help="Calibration text: .txt, a table (.jsonl, .json, .csv, .parquet; `file.jsonl:field`), "
        "`hub:name/config:split` or `demo`. Repeat it for several texts; `FILE*0.3` sets a text's share.",
        callback=_named,
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Number of calibration windows."), IN_PLAN]
Window = Annotated[
    int | None, typer.Option(min=2, help="Tokens per window; by default the context length, at most 2048."), IN_PLAN
]
Seed = Annotated[int, typer.Option(help="Seed of the windows and of every random choice."), IN_PLAN]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, e.g. refine.distill.tokens=500000."),
    IN_PLAN,
]
Refine = Annotated[
    Literal["none", "distill", "scales"] | None,
    typer.Option(
        help="Train towards the dense model's predictions: the factors (distill), or scales of rounded numbers, norms "
        "and biases (scales); none leaves it out. By default the recipe's choice."
    ),
    IN_PLAN,
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Compress only linears whose name matches, e.g. `*.mlp.*`; may be repeated."),
    IN_PLAN,
]
Skip = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Keep linears whose name matches dense; may be repeated."),
    IN_PLAN,
]
Chat = Annotated[bool, typer.Option(help="Render rows of chat messages with the tokenizer's chat template."), IN_PLAN]
SpecialTokens = Annotated[
    Literal["none", "window"],
    typer.Option(help="Special tokens (BOS) in calibration: none, or before every window."),
    IN_PLAN,
]
SpecialTokensOfText = Annotated[
    Literal["none", "text", "window"],
    typer.Option(help="Special tokens (BOS) in evaluation: none, before the text once, or before every window."),
]
MaxWindows = Annotated[int | None, typer.Option(min=1, help="Evaluate on the first windows of each text only.")]
Texts = Annotated[list[str] | None, typer.Option(help="Evaluation text, as for --calibration; may be repeated.")]
Resume = Annotated[
    bool,
    typer.Option("--resume/--fresh", help="Resume an interrupted run of the same command, or start anew."),
    NO_EFFECT,
]
Memory = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Memory limit, e.g. 8GiB; by default the memory that is free."),
    NO_EFFECT,
]
Overwrite = Annotated[bool, typer.Option(help="Replace what --out holds, once the new folder is complete."), NO_EFFECT]
Device = Annotated[
    str,
    typer.Option(help="Device to compute on: auto (CUDA if available), cpu, cuda, ...", callback=_placed),
]
Dtype = Annotated[str, typer.Option(help="Dtype to compute in: float32, bfloat16 or float16.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the results to this file as JSON.")]
