"""What a checkpoint directory says about itself, read without loading the model."""

import json
from pathlib import Path
from typing import Any

from slimrank.checkpoint.schema import METHOD, check_layers
from slimrank.errors import SlimrankError


def read_layers(folder: Path) -> dict[str, dict[str, Any]]:
    """The compressed layers' entries by module name; none for a checkpoint that slimrank did not compress."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SlimrankError(f"The file {path} can't be read ({error.strerror}); name a checkpoint folder.") from error
    except (ValueError, RecursionError) as error:
        raise SlimrankError(f"The file {path} is not JSON ({error}); fetch the checkpoint again.") from error
    quantization = config.get("quantization_config") or {}
    if quantization.get("quant_method") != METHOD:
        return {}
    return check_layers(quantization.get("version"), quantization.get("layers"))
