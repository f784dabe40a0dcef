"""ONNX with a key-value cache, run by ONNX Runtime."""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slimrank.checkpoint.companions import save_companions
from slimrank.errors import MissingLibrary, SlimrankError
from slimrank.model.load import Loaded
from slimrank.serve.export.few_bits import few_bit_nodes
from slimrank.serve.export.graph import WithCache, empty_past, example, names
from slimrank.serve.export.parity import Runner

FILE = "model.onnx"


def export_onnx(loaded: Loaded, folder: Path) -> Runner:
    """Write model.onnx in float32, its configuration and tokenizer, and run it with ONNX Runtime."""
    need("onnx", "onnx", "onnxscript", "onnxruntime")
    import onnxruntime

    write_onnx(loaded, folder / FILE)
    loaded.model.config.save_pretrained(folder)
    save_companions(loaded.directory, loaded.tokenizer, folder)
    runtime = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    return cached_runner(loaded, lambda feed: runtime.run(None, feed))


def write_onnx(loaded: Loaded, file: Path) -> None:
    """Trace the model with its cache; sizes of batch, tokens and past stay free."""
    arguments, dynamic = example(loaded.model)
    inputs, outputs = names(len(arguments[3]) // 2)
    try:
        with few_bit_nodes(loaded.model), quiet(), torch.no_grad():
            torch.onnx.export(
                WithCache(loaded.model), arguments, file, dynamo=True, dynamic_shapes=dynamic, input_names=inputs,
                output_names=outputs, external_data=True, verbose=False,
            )  # fmt: skip
    except torch.onnx.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise SlimrankError(
            f"MODEL {loaded.name} cannot be traced as one graph ({reason}): export it with --to dense."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log: the exporter tells of operators that no model here has, and shows graphs that fail."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def cached_runner(loaded: Loaded, run: Callable[[dict[str, Any]], Any]) -> Runner:
    """A Runner over `run`, which takes the graph's inputs by name and gives its outputs in order, in numpy."""
    past = [tensor.numpy() for tensor in empty_past(loaded.model)]
    inputs = names(len(past) // 2)[0]

    def start() -> Callable[[Tensor], Tensor]:
        state = past

        def step(ids: Tensor) -> Tensor:
            nonlocal state
            seen, new = state[0].shape[2], ids.shape[1]
            mask, positions = np.ones((1, seen + new), np.int64), np.arange(seen, seen + new)[None]
            logits, *state = run(dict(zip(inputs, [ids.numpy(), mask, positions, *state], strict=True)))
            return torch.from_numpy(np.array(logits))

        return step

    return Runner(start)


def need(extra: str, *modules: str) -> None:
    """Raise a UsageError that says what to install where one of `modules` is missing."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingLibrary(f"--to {extra} needs {module}: run pip install 'slimrank[{extra}]'.")
