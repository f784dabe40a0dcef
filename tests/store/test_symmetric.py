import pytest
import torch

from slimrank.store.symmetric import pack, unpack


@pytest.mark.parametrize("n", [1, 2, 3, 8, 33])
def test_half_the_space_holds_the_whole_matrix(n):
    x = torch.randn(n, 2 * n, generator=torch.Generator().manual_seed(n)).float()
    gram = (x @ x.T).double()
    gram = (gram + gram.T) / 2
    gram = gram.float().double()
    packed = pack(gram)
    assert packed.dtype == torch.float32 and len(packed) <= n * n / 2 + 1.5 * n
    assert torch.equal(unpack(packed, n), gram)
