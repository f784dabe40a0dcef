"""slimrank quantize: a dense or compressed checkpoint in fewer bits."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import Model, Overwrite


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    bits: Annotated[int, typer.Option(help="8, 4, 3 or 2; below 8 only low-rank (U V), kept columns and dense.")] = 8,
    group: Annotated[
        int | None, typer.Option(help="Inputs that share a scale; by default 32 in 4 bits, else a whole row.", min=1)
    ] = None,
    ends: Annotated[int, typer.Option(help="Bits of embedding and head; 16 leaves them as they are.")] = 8,
    overwrite: Overwrite = False,
) -> None:
    """Round the linears of MODEL, dense or compressed, to few bits and write a checkpoint that loads like any other.

    Example: slimrank quantize small --bits 8 --out small-int8
    """
    from slimrank.checkpoint import check_free
    from slimrank.cli import console
    from slimrank.evaluate import weight_bytes
    from slimrank.model.load import load
    from slimrank.run.quantize import quantize

    check_free(out, overwrite)
    loaded = load(model)
    before = weight_bytes(loaded.directory) if loaded.directory else None
    notes = quantize(loaded, out, bits=bits, group=group, ends=None if ends == 16 else ends, overwrite=overwrite)
    was = "" if before is None else f" instead of {before:,}"
    console.out.print(f"Written to {out}: {weight_bytes(out):,} bytes{was}")
    for note in notes:
        console.out.print(note)
