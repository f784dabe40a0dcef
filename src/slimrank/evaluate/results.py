"""What `evaluate` says of each model, and its JSON."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.nn import Module

from slimrank.evaluate.perplexity import Perplexity
from slimrank.forms.quantized import QuantizedLinear
from slimrank.integrations.lm_eval import TaskResult
from slimrank.store.source import weight_files

JSON_VERSION = 1


@dataclass(frozen=True)
class ModelResult:
    """One evaluated model: a Perplexity per text, tasks, parameter counts, and the bytes of its weights on disk.

    `linear_parameters` counts the linears that a compression may touch, `parameters` the whole model.
    """

    name: str
    texts: dict[str, Perplexity]
    linear_parameters: int
    parameters: int
    bytes: int
    tasks: dict[str, TaskResult] = field(default_factory=dict)

    def nats_lost(self, first: "ModelResult") -> dict[str, float]:
        """Nats per token more than `first` pays, for each text that both have read."""
        return {text: own.nats - first.texts[text].nats for text, own in self.texts.items() if text in first.texts}


def to_json(results: Sequence[ModelResult]) -> str:
    """The results as JSON, the first model being the reference; a perplexity beyond a float's range is null.

    {"version": 1, "models": [{"name", "parameters": {"linears", "model"}, "bytes",
    "texts": {source: {"perplexity", "nats", "nats_lost", "tokens", "windows", "window"}},
    "tasks": {name: {"items", "shots", "version", "metrics": {metric: {"value", "stderr"}}}}}]}
    """
    models = [_model(result, results[0]) for result in results]
    return json.dumps({"version": JSON_VERSION, "models": models}, indent=2, allow_nan=False) + "\n"


def _model(result: ModelResult, first: ModelResult) -> dict[str, Any]:
    lost = result.nats_lost(first)
    return {
        "name": result.name,
        "parameters": {"linears": result.linear_parameters, "model": result.parameters},
        "bytes": result.bytes,
        "texts": {text: _text(measured, lost.get(text)) for text, measured in result.texts.items()},
        "tasks": {name: asdict(task) for name, task in result.tasks.items()},
    }


def _text(measured: Perplexity, lost: float | None) -> dict[str, Any]:
    return {
        "perplexity": measured.perplexity if math.isfinite(measured.perplexity) else None,
        "nats": measured.nats,
        "nats_lost": lost,
        "tokens": measured.tokens,
        "windows": measured.windows,
        "window": measured.window,
    }


def count_parameters(model: Module) -> int:
    """The model's parameters, tied ones once, and the whole numbers of quantized factors."""
    whole = sum(m.in_features * m.out_features for m in model.modules() if isinstance(m, QuantizedLinear))
    return whole + sum(parameter.numel() for parameter in model.parameters())


def weight_bytes(directory: Path) -> int:
    """The bytes of the files that the directory's tensors are read from."""
    return sum(file.stat().st_size for file in weight_files(directory) if file.is_file())
