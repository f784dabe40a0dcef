"""What tells one model from another: a hash of its settings and of a sample of its weights."""

import hashlib
import json
from typing import Any

from slimrank.model.decoder import Decoder

OUTWARD = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache")


def fingerprint(decoder: Decoder) -> dict[str, str]:
    """The model's class, and a hash of its settings and of its tensors' names, shapes and 256 values of each."""
    config = settings(json.loads(decoder.model.config.to_json_string(use_diff=False)))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, shape, values in sorted(decoder.weights.dense_samples(256), key=lambda item: item[0]):
        digest.update(f"{name} {tuple(shape)}".encode() + values.numpy().tobytes())
    return {"class": type(decoder.model).__name__, "sha256": digest.hexdigest()}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """A model's settings, less what says where it came from and in what it computes."""
    kept = {name: value for name, value in config.items() if not name.startswith("_") and name not in OUTWARD}
    return {name: settings(value) if isinstance(value, dict) else value for name, value in kept.items()}
