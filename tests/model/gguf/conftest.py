from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def written(tiny_llama, tiny_tokenizer, tmp_path) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """written(...) -> the file of a tiny Llama, width 64 with grouped queries, and its dequantised tensors."""

    from tiny_gguf import write_gguf  # which needs the library

    def write(*arguments: Any, tokenizer: Any = tiny_tokenizer, **options: Any) -> tuple[Path, dict[str, torch.Tensor]]:
        tokens = (tokenizer or tiny_tokenizer).vocab_size
        model = tiny_llama(hidden_size=64, intermediate_size=96, vocab_size=tokens() if callable(tokens) else tokens)
        return tmp_path / "tiny.gguf", write_gguf(tmp_path / "tiny.gguf", model, tokenizer, *arguments, **options)

    return write
