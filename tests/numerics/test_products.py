import pytest
import torch
from torch.nn.functional import linear

from slimrank.numerics.packing import pack
from slimrank.numerics.products import (
    FEW,
    PIECE,
    eight_bit_product,
    floats_of_halves,
    four_bit_product,
    four_bits,
    kernel_group,
    product_in_pieces,
    takes_eight_bits,
)

EXACT = {torch.float32: 1e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}


def numbers(rows, columns, bits):
    generator = torch.Generator().manual_seed(rows + columns)
    low = -(2 ** (bits - 1))
    return torch.randint(low, -low, (rows, columns), generator=generator).to(torch.int8)


@pytest.mark.parametrize("dtype", EXACT)
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@pytest.mark.parametrize(
    ("rows", "columns", "group"),
    [
        (64, 96, 32),
        (5, 40, 32),
        (100, 200, 64),
        (16, 320, 128),
        (33, 70, None),
        (48, 512, None),
        (20, 96, 96),
        (7, 50, 64),
    ],
)
def test_four_bits_against_float64(rows, columns, group, bits, dtype):
    q = numbers(rows, columns, bits)
    scale = (torch.rand(rows, -(-columns // group) if group else 1) + 0.1).to(dtype)
    x = torch.randn(3, columns).to(dtype)
    packed = four_bits(q, scale, bits, group)
    expected = x.double() @ (q * scale.double().repeat_interleave(group or columns, 1)[:, :columns]).T
    found = four_bit_product(x, packed)
    assert found.dtype == dtype and (found.double() - expected).norm() <= EXACT[dtype] * expected.norm()


def test_groups_that_the_kernel_has_not():
    assert kernel_group(64, 16) is None and four_bits(numbers(16, 64, 4), torch.ones(16, 4), 4, 16) is None
    assert [kernel_group(*one) for one in ((576, None), (100, None), (300, 96), (64, 300), (512, 512))] == [
        64, 128, 32, 64, 256,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", EXACT)
def test_eight_bits_against_float64(dtype):
    q, scale, x = numbers(48, 96, 8), (torch.rand(48) + 0.1).to(dtype), torch.randn(5, 96).to(dtype)
    expected = x.double() @ (q * scale.double()[:, None]).T
    assert (eight_bit_product(x, q, scale).double() - expected).norm() <= EXACT[dtype] * expected.norm()
    shifted = torch.empty(48 * 96 + 1, dtype=torch.int8)[1:].view(48, 96).copy_(q)  # as a file may hold it
    assert torch.equal(eight_bit_product(x, shifted, scale), eight_bit_product(x, q, scale))
    assert takes_eight_bits(48, 96) and not takes_eight_bits(50, 96) and not takes_eight_bits(48, 100)


def test_pieces_are_the_product():
    weight, x = torch.randn(2 * PIECE + 3, 9), torch.randn(FEW + 1, 9)
    found = product_in_pieces(x, len(weight), lambda start, end: weight[start:end])
    torch.testing.assert_close(found, linear(x, weight))


@pytest.mark.parametrize("dtype", EXACT)
def test_halves_become_floats_by_pairs(dtype):
    q = numbers(6, 64, 4)
    assert torch.equal(floats_of_halves(pack(q, 4), dtype), q.to(dtype))
