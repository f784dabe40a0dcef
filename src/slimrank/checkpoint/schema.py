"""The `quantization_config` entry of a compressed model's config.json."""

from typing import Any

from slimrank.errors import SlimrankError
from slimrank.forms import check_entry

METHOD = "slimrank"
VERSION = 1


def quantization_config(layers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The JSON that says which layers are stored in which form; `layers` maps module names to their entries."""
    return {"quant_method": METHOD, "version": VERSION, "layers": layers}


def check_layers(version: Any, layers: Any) -> dict[str, dict[str, Any]]:
    """Return `layers` when this version of slimrank can read them; a SlimrankError says why not."""
    if type(version) is not int or not 1 <= version <= VERSION:
        raise SlimrankError(
            f"The checkpoint's quantization_config has version {version!r} and this slimrank reads up to {VERSION}; "
            "update slimrank."
        )
    if not isinstance(layers, dict) or not all(isinstance(entry, dict) for entry in layers.values()):
        raise SlimrankError("The key quantization_config.layers of config.json must map module names to objects.")
    for name, entry in layers.items():
        check_entry(name, entry)
    return layers
