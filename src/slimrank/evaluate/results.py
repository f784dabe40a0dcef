"""What `evaluate` says of each model, and its JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.nn import Module
from transformers import PreTrainedModel

from slimrank.evaluate.likeness import Distance
from slimrank.evaluate.mean import Mean
from slimrank.evaluate.perplexity import Perplexity
from slimrank.evaluate.tasks import TaskResult
from slimrank.forms.quantized import QuantizedLinear
from slimrank.store.source import has_weights, weight_files

JSON_VERSION = 1


@dataclass(frozen=True)
class ModelResult:
    """One evaluated model: a Perplexity per text, tasks, parameter counts, and the bytes of its weights on disk.

    `linear_parameters` counts the linears that a compression may touch, `parameters` the whole model; notes: what could
    not be compared with the first model, and which text is unlike the calibration text, a sentence each; distances: of
    the texts from the calibration text, where that is known.
    """

    name: str
    texts: dict[str, Perplexity]
    linear_parameters: int
    parameters: int
    bytes: int
    tasks: dict[str, TaskResult] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    distances: dict[str, Distance] = field(default_factory=dict)

    def lost(self, first: "ModelResult") -> dict[str, Mean]:
        """Nats per token more than `first` pays, for each text that both have read."""
        return {text: own.lost(first.texts[text]) for text, own in self.texts.items() if text in first.texts}


def to_json(results: Sequence[ModelResult]) -> str:
    """The results as JSON, the first model being the reference; a perplexity beyond a float's range is null.

    {"version": 1, "models": [{"name", "parameters": {"linears", "model"}, "bytes",
    "texts": {source: {"perplexity", "perplexity_stderr", "nats", "nats_stderr", "nats_lost", "nats_lost_stderr", "kl",
    "kl_stderr", "tokens", "windows", "window", "special_tokens", "distance",
    "distance_usual"}},
    "tasks": {name: {"items", "shots", "version", "metrics": {metric: {"value", "stderr"}}}}, "notes"}]}
    """
    models = [_model(result, results[0]) for result in results]
    return json.dumps({"version": JSON_VERSION, "models": models}, indent=2, allow_nan=False) + "\n"


def _model(result: ModelResult, first: ModelResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "parameters": {"linears": result.linear_parameters, "model": result.parameters},
        "bytes": result.bytes,
        "texts": {
            text: text_json(measured, first.texts.get(text)) | _distance(result.distances.get(text))
            for text, measured in result.texts.items()
        },
        "tasks": {name: asdict(task) for name, task in result.tasks.items()},
        "notes": list(result.notes),
    }


def _distance(found: Distance | None) -> dict[str, float | None]:
    value, usual = (None, None) if found is None else (found.value, found.usual)
    return {"distance": value, "distance_usual": usual}


def text_json(measured: Perplexity, first: Perplexity | None) -> dict[str, Any]:
    """What a model made of a text, as JSON; null where it is not known or beyond a float's range.

    first: what the first model made of it; its own loss and divergence are 0.
    """
    lost = Mean(math.nan) if first is None else measured.lost(first)
    kl = Mean(0.0, 0.0) if measured is first else measured.kl or Mean(math.nan)
    found = {
        "perplexity": measured.perplexity,
        "perplexity_stderr": measured.perplexity_stderr,
        "nats": measured.nats,
        "nats_stderr": measured.nats_stderr,
        "nats_lost": lost.value,
        "nats_lost_stderr": lost.stderr,
        "kl": kl.value,
        "kl_stderr": kl.stderr,
        "tokens": measured.tokens,
        "windows": measured.windows,
        "window": measured.window,
    }
    numbers = {key: value if value is not None and math.isfinite(value) else None for key, value in found.items()}
    return numbers | {"special_tokens": measured.special_tokens or None}


def count_parameters(model: Module) -> int:
    """The model's parameters, tied ones once, and the whole numbers of quantized factors."""
    whole = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantizedLinear))
    return whole + sum(parameter.numel() for parameter in model.parameters())


def stored_bytes(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """The bytes of the weights on disk, floats in `dtype`."""
    scales = sum(m.scale.numel() for m in model.modules() if isinstance(m, QuantizedLinear))
    whole = sum(t.nbytes for t in model.state_dict().values() if not t.is_floating_point())
    return (sum(parameter.numel() for parameter in model.parameters()) + scales) * dtype.itemsize + whole


def weight_bytes(directory: Path) -> int:
    """The bytes of the files that the directory's tensors are read from, 0 where none are safetensors files."""
    return sum(file.stat().st_size for file in weight_files(directory)) if has_weights(directory) else 0
