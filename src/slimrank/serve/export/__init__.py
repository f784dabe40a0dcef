"""Compressed checkpoints in formats that need no slimrank: one file a target, one line in the table.

Each target is a function (loaded, folder) that fills the folder and gives a Runner over what it wrote, whose tokens and
logits are then compared with the checkpoint's.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from slimrank.checkpoint.files import atomic_directory
from slimrank.errors import UsageError
from slimrank.model.load import DTYPES, Loaded, load
from slimrank.serve.export.dense import export_dense
from slimrank.serve.export.gguf import export_gguf
from slimrank.serve.export.onnx import export_onnx
from slimrank.serve.export.openvino import export_openvino
from slimrank.serve.export.parity import Parity, Runner, check

TARGETS: dict[str, Callable[[Loaded, Path], Runner]] = {
    "dense": export_dense,
    "onnx": export_onnx,
    "openvino": export_openvino,
    "gguf": export_gguf,
}


def export(model: str, to: str, out: Path, *, dtype: str | None = None, overwrite: bool = False) -> Parity:
    """Write the checkpoint `model` in the format `to` into the folder `out`, once it computes the same.

    dtype: of the dense weights, the checkpoint's own by default; graphs are float32.

    Raises:
        UsageError: for a target or dtype that isn't there, a missing library, or a folder that holds something.
        SlimrankError: if the written model's tokens or logits differ; nothing is left then.
    """
    if to not in TARGETS:
        raise UsageError(f"--to {to} is unknown: choose one of {', '.join(TARGETS)}.")
    if dtype is not None and (to != "dense" or dtype not in DTYPES):
        raise UsageError(f"--dtype {dtype} can't be: --to dense stores {', '.join(DTYPES)}, the others only float32.")
    loaded = load(model)
    if dtype is not None:
        loaded = replace(loaded, dtype=DTYPES[dtype])
    with atomic_directory(out, overwrite=overwrite) as folder:
        return check(TARGETS[to](loaded, folder), loaded, to)


__all__ = ["TARGETS", "Parity", "export"]
