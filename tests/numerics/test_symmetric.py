import pytest
import torch

from slimrank.numerics.gram_sum import GramSum
from slimrank.numerics.symmetric import length, unpack


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33, 2500])
def test_half_the_space_holds_the_whole_gram(n):
    batches = torch.randint(-9, 9, (2, 7, n), generator=torch.Generator().manual_seed(n)).float()
    sums = GramSum.empty(n, torch.device("cpu"))
    for x in batches:
        sums.add(x)
    expected = batches.flatten(0, 1).double()
    assert torch.equal(sums.full(), expected.T @ expected)
    assert len(sums.packed) == length(n) <= n * n / 2 + 1.5 * n
    assert torch.equal(unpack(sums.packed.float(), n), sums.full())
