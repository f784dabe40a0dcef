import copy

import pytest
import torch
from torch import Tensor, nn

from slimrank.forms import KeptColumns

OUT, IN, RANK = 7, 9, 2
KEPT = [1, 4, 5]
OTHERS = [0, 2, 3, 6, 7, 8]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def parts() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return random(OUT, len(KEPT)), random(OUT, RANK), random(RANK, len(OTHERS)), torch.tensor(KEPT)


def expected() -> Tensor:
    columns, left, right, _ = parts()
    weight = torch.zeros(OUT, IN, dtype=torch.float64)
    for place, column in zip(KEPT, columns.T, strict=True):
        weight[:, place] = column
    for place, column in zip(OTHERS, (left @ right).T, strict=True):
        weight[:, place] = column
    return weight


@pytest.mark.parametrize("biased", [False, True])
def test_is_its_kept_columns_and_the_product_elsewhere(biased):
    bias = random(OUT) if biased else None
    module, x = KeptColumns.from_columns(*parts(), bias), random(2, 5, IN)
    torch.testing.assert_close(module.dense_weight(), expected(), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(module(x), nn.functional.linear(x, expected(), bias), rtol=1e-12, atol=1e-12)
    assert module.entry() == {"form": "columns", "rank": RANK, "columns": 3}


def test_counts_what_it_stores_indices_included():
    module = KeptColumns.from_columns(*parts())
    stored = sum(tensor.numel() for tensor in module.state_dict().values())
    assert module.count_parameters(OUT, IN, module.entry()) == stored == 7 * 3 + 2 * (7 + 9 - 3) + 3


def test_the_order_follows_from_loaded_indices_also_after_a_call():
    module, dense, x = KeptColumns.from_columns(*parts()), nn.Linear(IN, OUT, bias=False).double(), random(4, IN)
    shell = KeptColumns.shell(dense, module.entry())
    shell.kept.copy_(torch.arange(3))
    shell(x)
    shell.load_state_dict(module.state_dict())
    assert torch.equal(shell(x), module(x)) and torch.equal(copy.deepcopy(shell)(x), module(x))
    assert set(shell.state_dict()) == {"weight", "kept", "down.weight", "up.weight"}
