"""slimrank quantize: the factors of a compressed checkpoint in fewer bits."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import Model, Overwrite


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    bits: Annotated[int, typer.Option(help="8, or 4 if every compressed layer is low-rank (U V) or kept columns.")] = 8,
    overwrite: Overwrite = False,
) -> None:
    """Quantize the factors of the compressed MODEL to int8 or int4 and write a checkpoint that loads like any other.

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
    quantize(loaded, out, bits=bits, overwrite=overwrite)
    was = "" if before is None else f" instead of {before:,}"
    console.out.print(f"Written to {out}: {weight_bytes(out):,} bytes{was}")
