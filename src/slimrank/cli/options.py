"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from slimrank.errors import UsageError


def _named(calibration: list[str] | None) -> list[str] | None:
    if "" in (calibration or ()):
        raise UsageError("--calibration is empty: give a text such as train.txt, or `demo`.")
    return calibration


def one_or_all(calibration: list[str] | None) -> str | list[str] | None:
    """One text by itself, as in what was written before there could be several."""
    return calibration[0] if calibration and len(calibration) == 1 else calibration or None


def _placed(context: typer.Context, device: str) -> str:
    if device != "auto" or context.resilient_parsing:
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


Model = Annotated[str, typer.Argument(help="Hub id, local directory, .gguf file, or `demo`, the embedded model.")]
RecipeName = Annotated[str, typer.Option("--recipe", help="A shipped recipe (see `slimrank recipes`) or a YAML file.")]
Keep = Annotated[float, typer.Option(help="Share of the blocks' linears' parameters that stays, in (0, 1].")]
Calibration = Annotated[
    list[str] | None,
    typer.Option(
        help="Text: .txt, .jsonl, .parquet (`file.jsonl:field`), `hub:name/config:split`, or `demo`; may be repeated: "
        "equal shares of the windows, or `FILE*0.3`.",
        callback=_named,
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="Calibration windows.")]
Window = Annotated[int | None, typer.Option(min=2, help="Tokens a window; by default the context, at most 2048.")]
Seed = Annotated[int, typer.Option(help="Seed of the windows and of every random choice.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a recipe key, such as refine.distill.tokens=500000."),
]
Refine = Annotated[
    Literal["none", "blocks", "distill"] | None,
    typer.Option(help="Train the factors, block by block or end to end; by default as the recipe says."),
]
Chat = Annotated[bool, typer.Option(help="Render rows of chat messages with the tokenizer's chat template.")]
SpecialTokens = Annotated[bool, typer.Option(help="Begin windows with the tokenizer's special tokens (BOS).")]
Device = Annotated[
    str,
    typer.Option(help="Where to compute: auto (a CUDA device where there is one), cpu, cuda, ...", callback=_placed),
]
Dtype = Annotated[str, typer.Option(help="What to compute in: float32, bfloat16, float16.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the outcome as JSON to this file.")]
