"""config.json: what transformers writes of the model's config, readable by the versions before it too."""

import json
from collections.abc import Container
from pathlib import Path
from typing import Any

import torch

from slimrank.checkpoint.files import write_text

_REPLACED = {"torch_dtype", "quantization_config", "_name_or_path"}


def finish_config(path: Path, dtype: torch.dtype, source: Path | None, known: Container[str] = ()) -> None:
    """Set the stored dtype in the config.json at `path` and add the keys that only older transformers read.

    transformers 5 moves keys such as rope_theta to new places, where 4.57 would take its default instead and compute
    something else. So the dense model's keys are kept, and rope's are written in the old place as well. `known` are the
    keys of the config in memory, which says what they are, be it by leaving them out.
    """
    config = _load(path)
    dense = _load(source / path.name) if source is not None and (source / path.name).is_file() else {}
    if dense.get("model_type") == config["model_type"]:
        config = {key: value for key, value in dense.items() if key not in _REPLACED and key not in known} | config
    config = _older_rope(config) | config
    config["dtype"] = str(dtype).removeprefix("torch.")
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The keys in which transformers 4 reads the rotary embedding, where all layers share one."""
    rope = config.get("rope_parameters") or {}
    if "rope_theta" not in rope:
        return {}
    older = {"rope_theta": rope["rope_theta"]}
    if rope.get("rope_type", "default") != "default":
        older["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    return older


def _load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
