from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import VOCABULARY
from torch import Tensor
from transformers import PreTrainedModel

from slimrank.checkpoint import write_checkpoint
from slimrank.forms import compressed_layers

Write = Callable[..., Path]


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(3, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(model: PreTrainedModel, name: str = "out", **options: object) -> Path:
        options = {"layers": compressed_layers(model), "dtype": torch.float32, **options}
        write_checkpoint(model, tmp_path / name, **options)
        return tmp_path / name

    return write
