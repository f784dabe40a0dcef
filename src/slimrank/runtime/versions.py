"""Versions of Python and the libraries, for results and bug reports."""

import platform
from importlib.metadata import PackageNotFoundError, version

REQUIRED = ("slimrank", "torch", "transformers", "safetensors", "accelerate", "huggingface_hub", "numpy", "scipy")
OPTIONAL = (
    "datasets", "optuna", "peft", "altair", "vl-convert-python", "lm-eval", "gguf", "vllm", "onnxruntime",
    "openvino",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Versions by name: Python, the platform, the required libraries, and the optional ones that are installed."""
    known = {"python": platform.python_version(), "platform": platform.platform()}
    known |= {name: _version(name) or "none: run from source" for name in REQUIRED}
    return known | {name: number for name in OPTIONAL if (number := _version(name))}


def needed_versions() -> dict[str, str]:
    """The versions that results depend on, and the machine type."""
    known = versions()
    return {name: known[name] for name in ("python", *REQUIRED)} | {"machine": platform.machine()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
