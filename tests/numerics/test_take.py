import pytest
import torch

from slimrank.numerics.take import take_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("index", [[2, 0, 1], [1], []])
@pytest.mark.parametrize("whole", [torch.int32, torch.int64])
def test_the_last_axis_is_taken_in_any_order(rows, dtype, index, whole):
    x, places = torch.arange(rows * 6).view(2, rows, 3).to(dtype), torch.tensor(index, dtype=whole)
    assert torch.equal(take_last(x, places), x[..., places])


def test_a_compiled_graph_takes_the_same():
    x, places = torch.randn(4, 3), torch.tensor([2, 0, 1])
    traced = torch.export.export(Taking(), (x, places)).module()
    assert torch.equal(traced(x, places), x[:, places])


class Taking(torch.nn.Module):
    def forward(self, x, places):
        return take_last(x, places)
