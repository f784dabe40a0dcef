import pytest
import torch

from slimrank.forms.bits import pack, packed_bytes, places, unpack


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 171])
def test_unpacks_to_the_same_mask(count):
    mask = torch.rand(count, generator=torch.Generator().manual_seed(count)) < 0.5
    packed = pack(mask)
    assert packed.dtype == torch.uint8 and len(packed) == packed_bytes(count)
    assert torch.equal(unpack(packed, count), mask)


def test_the_lowest_bit_is_the_first_index():
    mask = torch.tensor([True, False, False, True, False, False, False, False, True])
    assert pack(mask).tolist() == [9, 1]


def test_places_count_both_kinds():
    assert places(torch.tensor([True, False, False, True, True])).tolist() == [0, 0, 1, 1, 2]
