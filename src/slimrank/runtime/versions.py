"""The versions that a result or a bug report depends on."""

import platform
from importlib.metadata import PackageNotFoundError, version

REQUIRED = ("slimrank", "torch", "transformers", "safetensors", "accelerate", "huggingface_hub", "numpy", "scipy")
OPTIONAL = (
    "datasets", "optuna", "peft", "altair", "vl-convert-python", "lm-eval", "gguf", "torchao", "vllm", "onnxruntime",
    "openvino",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Python, the platform, the libraries always used, and the optional ones that are installed, by name."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {name: _version(name) or "none: run from source" for name in REQUIRED}
    return found | {name: number for name in OPTIONAL if (number := _version(name))}


def needed_versions() -> dict[str, str]:
    """Those that a computation's outcome depends on, with the kind of machine."""
    found = versions()
    return {name: found[name] for name in ("python", *REQUIRED)} | {"machine": platform.machine()}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
