import pytest
import torch
from lossless import factors
from torch import Tensor, nn

from slimrank.forms import KeptColumns, LowRank, Pivoted, joint_layers
from slimrank.serve.shards import FusedParts, rows_of

IN, OUT = 12, 16


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """A layer's tensors as a checkpoint gives them, without the empty guard."""
    return {name: tensor for name, tensor in module.state_dict().items() if tensor.numel()}


def layers() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    left, right, kept = torch.randn(OUT, 5), torch.randn(5, IN), torch.tensor([1, 4, 6, 11])
    return {
        "dense": nn.Linear(IN, OUT, bias=False),
        "low_rank": LowRank.from_low_rank(left, right),
        "pivoted": Pivoted.from_low_rank(left, right),
        "square": Pivoted.from_low_rank(*factors(torch.randn(8, IN))),
        "columns": KeptColumns.from_columns(torch.randn(OUT, 4), left, right[:, :8], kept),
    }


@torch.no_grad()
def test_joint_parts_share_their_leaders_factor_also_in_pieces():
    torch.manual_seed(0)
    sizes, x = (16, 4, 9), torch.randn(3, IN)
    parts = joint_layers(torch.randn(29, 7), torch.randn(7, IN), sizes, [None] * 3, "q")
    stored = [tensors(part) | {"first": torch.tensor(part.first)} for part in parts]
    assert [rows_of(one) for one in stored] == list(sizes)
    dense = nn.Linear(IN, 5, bias=False)
    for own in (
        [torch.arange(size) for size in sizes],
        [torch.tensor([5, 0, 3]), torch.tensor([2]), torch.arange(4, 9)],
    ):
        named = [*zip(stored, own, strict=True), (tensors(dense), torch.arange(5))]
        whole = FusedParts(named, torch.arange(IN), torch.device("cpu"), torch.float32)
        expected = torch.cat([part(x)[:, rows] for part, rows in zip(parts, own, strict=True)] + [dense(x)], -1)
        torch.testing.assert_close(whole(x), expected, rtol=1e-5, atol=1e-5)
        assert whole.first is not None and len(whole.first) == 7 + 5
        halves = [
            FusedParts(named, columns, torch.device("cpu"), torch.float32)(x[:, columns])
            for columns in torch.arange(IN).split(6)
        ]
        torch.testing.assert_close(sum(halves), expected, rtol=1e-5, atol=1e-5)


def fused(parts: list[nn.Module], rows: list[Tensor], columns: Tensor) -> FusedParts:
    stored = [(tensors(part), own) for part, own in zip(parts, rows, strict=True)]
    return FusedParts(stored, columns, torch.device("cpu"), torch.float32)


@torch.no_grad()
def test_forms_side_by_side_are_the_layers_themselves():
    parts, x = list(layers().values()), torch.randn(3, 2, IN)
    whole = fused(parts, [torch.arange(len(part(x[0, 0]))) for part in parts], torch.arange(IN))
    torch.testing.assert_close(whole(x), torch.cat([part(x) for part in parts], -1), rtol=1e-5, atol=1e-5)
    assert whole.first is not None and len(whole.first) == 16 + 5 + 5 + 8  # one product for all but the gathering part


@pytest.mark.parametrize("name", layers())
@torch.no_grad()
def test_rows_split_over_devices(name):
    part, x = layers()[name], torch.randn(3, IN)
    rows = torch.arange(len(part(x[0]))).split(len(part(x[0])) // 4)
    split = [fused([part], [own], torch.arange(IN))(x) for own in (*rows[:2], torch.cat(rows[2:]))]
    torch.testing.assert_close(torch.cat(split, -1), part(x), rtol=1e-5, atol=1e-5)
    mixed = torch.tensor([5, 0, 3])  # fused on disk: a device's rows need not follow each other
    torch.testing.assert_close(fused([part], [mixed], torch.arange(IN))(x), part(x)[:, mixed], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", layers())
@torch.no_grad()
def test_columns_split_over_devices_add_up(name):
    part, x = layers()[name], torch.randn(3, IN)
    rows = torch.arange(len(part(x[0])))
    split = [fused([part], [rows], own)(x[:, own]) for own in torch.arange(IN).split(4)]
    torch.testing.assert_close(sum(split), part(x), rtol=1e-5, atol=1e-5)


def test_takes_the_dtype_asked_for():
    part = layers()["pivoted"]
    stored = [(tensors(part), torch.arange(OUT))]
    module = FusedParts(stored, torch.arange(IN), torch.device("cpu"), torch.bfloat16)
    assert module(torch.randn(2, IN, dtype=torch.bfloat16)).dtype == torch.bfloat16
