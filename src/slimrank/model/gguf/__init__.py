"""Models in GGUF files, dequantised."""

from slimrank.model.gguf.model import load_gguf, said, stored_dtype

__all__ = ["load_gguf", "said", "stored_dtype"]
