import pytest
import torch
from torch.nn.functional import linear

from slimrank.forms.quantized import QuantizedLinear
from slimrank.numerics.packing import pack
from slimrank.numerics.products import FEW, PIECE
from slimrank.serve import few_tokens
from slimrank.serve.few_bits import StoredProduct, filled, kernels_for, why_floats
from slimrank.serve.kernels.blocks import MOST


def matrix(rows: int, columns: int, bits: int, group: int | None, dtype: torch.dtype = torch.float32):
    """A matrix of random numbers of few bits, and its values in float64."""
    generator = torch.Generator().manual_seed(rows + columns + bits)
    low = -(2 ** (bits - 1))
    numbers = torch.randint(low, -low, (rows, columns), generator=generator).to(torch.int8)
    groups = -(-columns // group) if group else 1
    scale = (torch.rand(rows, groups, generator=generator) + 0.1).to(dtype)
    values = numbers * scale.double().repeat_interleave(group or columns, 1)[:, :columns]
    return QuantizedLinear.of(pack(numbers, bits), scale, columns, bits, group), values


CASES = [(8, None), (8, 32), (4, 32), (4, 64), (4, 40), (4, None), (3, 64), (2, 32)]


@pytest.mark.parametrize(("bits", "group"), CASES)
@pytest.mark.parametrize(("rows", "columns"), [(48, 96), (50, 70), (PIECE + 5, 33), (3, 20)])
def test_zeros_fill_up_and_change_no_value(rows, columns, bits, group):
    few, values = matrix(rows, columns, bits, group)
    made = filled(few, 16, 64)
    assert (made.out_features, made.in_features) == (-(-rows // 16) * 16, -(-columns // 64) * 64)
    assert torch.equal(made.matrix(torch.float64)[:rows, :columns], values)
    assert not made.numbers()[rows:].any() and not made.numbers()[:, columns:].any()
    assert (made.group is None) == (group is None or group >= columns)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "group"), CASES)
@pytest.mark.parametrize("tokens", [0, 1, FEW, FEW + 1])
def test_any_number_of_tokens_gives_the_product_in_float64(tokens, bits, group, dtype):
    few, values = matrix(PIECE + 5, 70, bits, group, dtype)
    product, x = StoredProduct(few), torch.randn(tokens, 70).to(dtype)
    expected = linear(x.double(), values)
    assert product(x).dtype == dtype and product(x).shape == expected.shape
    assert (product(x) - expected).norm() <= (1e-5 if dtype == torch.float32 else 8e-3) * expected.norm()
    torch.testing.assert_close(product(x[:, None])[:, 0], product(x))


def test_holds_what_is_stored_and_nothing_else():
    product = StoredProduct(matrix(48, 96, 4, 32)[0])
    product(torch.randn(1, 96))
    tensors = [*product.parameters(), *product.buffers()]
    assert sum(tensor.nbytes for tensor in tensors) == 48 * (96 // 2 + 3 * 4) and product.filled._packed is None


def test_one_graph_serves_any_number_of_tokens():
    product = StoredProduct(matrix(50, 70, 8, None)[0])
    compiled = torch.compile(product, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (3, 30):
        x = torch.randn(tokens, 70)
        torch.testing.assert_close(compiled(x), product(x))


def test_says_why_numbers_become_floats():
    eight, four, away = matrix(48, 96, 8, None)[0], matrix(48, 96, 4, 32)[0], matrix(48, 96, 3, 32)[0].to("meta")
    assert why_floats(eight, False) is None and why_floats(four, True) is None
    assert why_floats(four, False) == "torch's kernels for a CPU read only 8 bits with one scale a row"
    assert why_floats(away, False) == "slimrank's kernels for few tokens don't run here (meta, torch.float32)"
    assert not kernels_for(four.scale)


@pytest.mark.parametrize(("bits", "group"), CASES)
@pytest.mark.parametrize("tokens", [1, MOST, MOST + 1])
def test_kernels_for_few_tokens_read_the_numbers(tokens, bits, group, monkeypatch):
    from interpreted import DEVICE  # skips where no kernel runs

    monkeypatch.setattr(few_tokens, "DEVICE", DEVICE)
    few, values = matrix(50, 70, bits, group)
    product = StoredProduct(few.to(DEVICE))
    x = torch.randn(tokens, 70)
    assert product.kernels
    torch.testing.assert_close(product(x.to(DEVICE)).cpu().double(), linear(x.double(), values), rtol=1e-4, atol=1e-3)


def test_a_part_of_a_matrix_may_be_empty():
    for rows, columns in ((0, 96), (48, 0)):
        few = QuantizedLinear.of(torch.zeros(rows, columns, dtype=torch.int8), torch.zeros(rows, 1), columns, 8, None)
        assert torch.equal(StoredProduct(few)(torch.randn(3, columns)), torch.zeros(3, rows))
