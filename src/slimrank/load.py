"""Load a model and its tokenizer by hub id, directory or the word demo."""

from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from slimrank import demo
from slimrank.checkpoint import verify
from slimrank.errors import SlimrankError, UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
UNREADABLE = (OSError, ValueError, KeyError, RuntimeError, SafetensorError, HFValidationError, LocalTokenNotFoundError)


@dataclass
class Loaded:
    """A model in memory. name: as the user gave it; dtype: of its stored weights; directory: None for a hub model."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    dtype: torch.dtype
    directory: Path | None


def load(name: str, *, dtype: str = "float32", device: str = "cpu") -> Loaded:
    """Load `name` and compute in `dtype` on `device`; a checkpoint of slimrank's loads like any other.

    Raises:
        UsageError: for a dtype that is not one of DTYPES or a device that torch does not have.
        SlimrankError: if the model or its tokenizer cannot be read.
    """
    if dtype not in DTYPES:
        raise UsageError(f"--dtype {dtype} is unknown: choose one of {', '.join(DTYPES)}.")
    place = str(demo.MODEL) if name == "demo" else name
    directory = Path(place) if Path(place).is_dir() else None
    disable_progress_bar()
    try:
        if directory:
            verify(directory)
        model = AutoModelForCausalLM.from_pretrained(place, dtype="auto")
        tokenizer = AutoTokenizer.from_pretrained(place)
    except SlimrankError:
        raise
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise SlimrankError(f"MODEL {name} cannot be loaded: {reason or type(error).__name__}.") from error
    stored = model.dtype
    try:
        torch.nn.Module.to(model, device=torch.device(device), dtype=DTYPES[dtype])
        return Loaded(name, model.eval(), tokenizer, stored, directory)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} cannot be used: {' '.join(str(error).split())[:200]}.") from error


def require_dense(loaded: Loaded) -> None:
    """Raise a UsageError if the model is quantized or already compressed."""
    config = getattr(loaded.model.config, "quantization_config", None)
    if config is not None:
        method = config.get("quant_method") if isinstance(config, dict) else config.quant_method
        raise UsageError(f"MODEL {loaded.name} is already compressed ({method}): give the dense model.")
