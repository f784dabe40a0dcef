"""slimrank export: a compressed checkpoint in another format."""

from pathlib import Path
from typing import Annotated

import typer

from slimrank.cli.options import Model, Overwrite


def export(
    model: Model,
    to: Annotated[
        str, typer.Option(help="Format: dense (full size, loads anywhere), onnx or openvino (with KV cache), gguf.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the result.")],
    dtype: Annotated[
        str | None, typer.Option(help="Dtype of exported dense weights; by default the checkpoint's.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write MODEL in another format, after checking that it generates the same 64 tokens with the same logits.

    Example: slimrank export small --to onnx --out small-onnx
    """
    from slimrank.checkpoint import check_free
    from slimrank.cli import console
    from slimrank.serve.export import export

    check_free(out, overwrite)
    parity = export(model, to, out, dtype=dtype, overwrite=overwrite)
    same = "rounded to 16 bits, so tokens were not compared" if parity.rounded else f"{parity.tokens} tokens equal"
    console.out.print(f"Written to {out}: {same}, logits within {parity.difference:.1e}")
