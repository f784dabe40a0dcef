"""What a model's folder is refused for before any of it is loaded, and the folder of a hub model."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from slimrank.checkpoint.companions import PATTERNS
from slimrank.checkpoint.schema import METHOD
from slimrank.errors import SlimrankError, UsageError
from slimrank.store.source import INDEX, SINGLE, opened, weight_files

CONFIG = "config.json"
NAMED = 3  # tensors in a sentence


def hub_folder(name: str) -> Path:
    """The hub model's files on this machine, fetched if need be: those that transformers reads and its companions."""
    folder = Path(snapshot_download(name, allow_patterns=[*PATTERNS, "*.json", SINGLE]))
    if not (folder / SINGLE).is_file() and (folder / INDEX).is_file():
        shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        folder = Path(snapshot_download(name, allow_patterns=sorted(set(shards))))
    return folder


def require_readable(name: str, folder: Path) -> None:
    """Raise a SlimrankError or UsageError where the folder of MODEL `name` is no dense or slimrank checkpoint.

    Checked: config.json, its quantization method, code of the model's own, and the weight files' headers.
    """
    if not (folder / CONFIG).is_file():
        weight_files(folder)  # which says so where the folder is an adapter's
        raise SlimrankError(f"MODEL {name} has no {CONFIG}: give a folder that transformers loads.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        method = (config.get("quantization_config") or {}).get("quant_method")
    except (ValueError, RecursionError, AttributeError) as error:
        raise SlimrankError(f"The file {folder / CONFIG} is not a model's configuration: fetch it again.") from error
    if method not in (None, METHOD):
        raise UsageError(
            f"MODEL {name} is already quantized ({method}): give the dense model that it was made from, in bfloat16."
        )
    if config.get("auto_map") and config.get("model_type") not in CONFIG_MAPPING:
        raise SlimrankError(
            f"MODEL {name} cannot be loaded: {folder / CONFIG} asks for code of the model's own (auto_map), "
            "which slimrank does not run: give a model of a class that transformers has."
        )
    if (folder / "adapter_config.json").is_file():
        raise SlimrankError(
            f"MODEL {name} holds a PEFT adapter beside the model: merge it (merge_and_unload) and save the result."
        )
    for file in weight_files(folder):
        opened(file)


def require_same_tensors(name: str, model: PreTrainedModel, info: Mapping[str, Iterable[Any]]) -> None:
    """Raise a SlimrankError where transformers found tensors missing, left over, or of another shape.

    info: the loading info of from_pretrained.
    """
    missing = sorted(map(str, info.get("missing_keys", ())))
    unexpected = sorted(map(str, info.get("unexpected_keys", ())))
    mismatched = sorted(str(one[0] if isinstance(one, tuple) else one) for one in info.get("mismatched_keys", ()))
    faults = {"are missing": missing, "are left over": unexpected, "have another shape": mismatched}
    found = "; ".join(f"{shortly(names)} {what}" for what, names in faults.items() if names)
    if not found:
        return
    compiled = any("_orig_mod." in key for key in unexpected)
    remedy = "save the model that torch.compile wraps (_orig_mod)" if compiled else "get the weights of this very class"
    raise SlimrankError(f"MODEL {name} has other tensors than its config's {type(model).__name__}: {found}; {remedy}.")


def shortly(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
