"""slimrank quantize: the factors of a compressed checkpoint in fewer bits."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import Model


def quantize(
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint.")],
    bits: Annotated[int, typer.Option(help="8, or 4 where every compressed layer is U V or kept columns.")] = 8,
    overwrite: Annotated[
        bool, typer.Option(help="Replace what --out holds, once the new checkpoint is whole.")
    ] = False,
) -> None:
    """Round the factors of the compressed MODEL and write a checkpoint that loads like before.

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
