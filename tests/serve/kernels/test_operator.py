import interpreted
import pytest
import torch
from lossless import factors
from random_layers import layer, random
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms import Pivoted
from slimrank.forms.joint import Joint, joint_layers
from slimrank.forms.outputs import Outputs
from slimrank.serve.few_tokens import computed
from slimrank.serve.kernels.operator import few_tokens
from slimrank.serve.kernels.tensors import check_tensors, readable

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
slow = pytest.mark.slow


@torch.no_grad()
def check(layers: list[nn.Module], x: Tensor) -> None:
    """The operator gives what the layers do, nearly, and no worse than they what float64 does."""
    found = computed(x, [one.outputs() for one in layers])
    for one, y in zip(layers, found, strict=True):
        exact = x.double() @ one.dense_weight().T + (0 if one.dense_bias() is None else one.dense_bias().double())
        size = DTYPES[x.dtype] * exact.abs().max().item()
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=2 * size)
        torch.testing.assert_close(y, one(x), rtol=0, atol=2 * size)


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("form", ["low_rank", "pivoted", "columns", "joint"])
def test_gives_what_the_layer_does(form, tokens):
    check([layer(form, 45, 50, 13, biased=True).to(interpreted.DEVICE)], random(tokens, 50).to(interpreted.DEVICE))


@slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 16, 17, 33, 64])
@pytest.mark.parametrize("form", ["low_rank", "pivoted", "columns", "joint"])
def test_of_any_size_and_dtype(form, tokens, dtype):
    for out, inp, rank in ((45, 50, 13), (96, 64, 32), (33, 300, 17), (300, 33, 33), (16, 16, 16), (7, 5, 1)):
        for biased in (False, True):
            one = layer(form, out, inp, min(rank, out, inp - inp // 3 if form == "columns" else inp), biased)
            check([one.to(interpreted.DEVICE, dtype)], random(tokens, inp).to(interpreted.DEVICE, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@torch.no_grad()
def test_a_unit_of_many_layers(dtype):
    """Five parts, which are two launches for the outputs: joint members, one without an own pivot, and dense rows."""
    inp, x = 40, random(3, 40).to(interpreted.DEVICE, dtype)
    left = torch.cat([random(9, 6), 1e-6 * random(5, 6), random(20, 6, seed=2)])
    group = joint_layers(left, random(6, inp) / 15, (9, 5, 20), [random(9), None, random(20)], "q")
    assert group[1].own == 0
    alone = Pivoted.from_low_rank(*factors(random(11, inp) / 6))
    group, alone = [one.to(interpreted.DEVICE, dtype) for one in group], alone.to(interpreted.DEVICE, dtype)
    assert alone.others is None
    dense = random(8, inp).to(interpreted.DEVICE, dtype) / 6
    factor = torch.cat([group[0].pivots.weight, dense, alone.pivots.weight])
    parts = [one.outputs() for one in (*group, alone)]
    order = [parts[0], parts[1], parts[2], None, parts[3]]
    y = few_tokens(
        x, [factor], None, 0, [matrix_of(part) for part in order], [part and part.table for part in order],
        [part and part.bias for part in order], places(group), [], 0, 0,
    )  # fmt: skip
    expected = torch.cat([*(one(x) for one in group), x @ dense.T, alone(x)], 1)
    torch.testing.assert_close(y, expected, rtol=0, atol=4 * DTYPES[dtype] * expected.abs().max().item())


def matrix_of(part: Outputs | None) -> Tensor | None:
    return None if part is None or part.matrix is None else part.matrix.numbers


def places(group: list[Joint]) -> list[int]:
    """copies, first of z, rank: three members of rank 6, 8 dense rows behind them, then 11 rows of full rank."""
    return [*(number for one in group for number in (one.own, 0, 6)), 8, 6, 8, 11, 14, 11]


@torch.no_grad()
def test_wide_reads_of_a_padded_matrix_take_nothing_of_what_lies_behind():
    one, x = layer("pivoted", 45, 50, 13).to(interpreted.DEVICE), random(2, 50).to(interpreted.DEVICE)
    wide = torch.full((32, 16), torch.nan, device=x.device)
    wide[:, :13] = one.others.weight
    one.others.weight = nn.Parameter(wide[:, :13])
    assert readable(one.others.weight, 13, 0) == 16 and readable(one.pivots.weight, 50, 0) == 50
    assert (
        readable(torch.empty(509).as_strided((32, 13), (16, 1)), 13, 0) == 13
    )  # where memory ends behind the last row
    check([one], x)


@pytest.mark.parametrize("form", ["low_rank", "pivoted", "columns"])
@torch.no_grad()
def test_nan_is_passed_on_to_its_token_alone(form):
    one, x = layer(form, 45, 50, 13).to(interpreted.DEVICE), random(4, 50).to(interpreted.DEVICE)
    x[2, 7] = torch.nan
    (y,) = computed(x, [one.outputs()])
    assert torch.equal(y.isnan().any(1), torch.tensor([False, False, True, False], device=y.device))
    torch.testing.assert_close(y.isnan(), one(x).isnan())


@torch.no_grad()
def test_inputs_of_any_layout_and_none_at_all():
    one = layer("pivoted", 45, 50, 13).to(interpreted.DEVICE)
    part = one.outputs()
    for x in (random(50, 6).T, random(4, 100)[:, ::2], random(2, 3, 70)[..., :50], random(2, 0, 50), random(50)):
        x = x.to(interpreted.DEVICE)
        (y,) = computed(x, [part])
        assert y.shape == (*x.shape[:-1], 45)
        torch.testing.assert_close(y, one(x), rtol=1e-5, atol=1e-5)


def test_splits_of_a_long_input_are_added_up_the_same_way_each_time():
    one, x = layer("pivoted", 24, 9000, 8).to(interpreted.DEVICE), random(1, 9000).to(interpreted.DEVICE)
    check([one], x)
    part = one.outputs()
    with torch.no_grad():
        assert torch.equal(computed(x, [part])[0], computed(x, [part])[0])


def test_what_it_cannot_take_is_one_sentence():
    one, x = layer("low_rank", 45, 50, 13).to(interpreted.DEVICE), random(2, 50).to(interpreted.DEVICE)
    weights = one.down.weight.detach(), one.up.weight.detach()

    def call(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return few_tokens(x, [down], None, 0, [up], [None], [None], [0, 0, 13], [], 0, 0)

    with pytest.raises(SlimrankError, match="bfloat16, float16 or float32, one for all, not bfloat16 and float32"):
        call(x.bfloat16(), *weights)
    with pytest.raises(SlimrankError, match="not float64"):
        call(x.double(), *(weight.double() for weight in weights))
    with pytest.raises(SlimrankError, match=r"tensors of one device, not of .* and meta\."):
        check_tensors(x, [weights[0].to("meta"), weights[1]], [])
    with pytest.raises(SlimrankError, match="up to 64 tokens, not 65"):
        call(random(65, 50).to(x.device), *weights)


def test_the_fake_is_as_the_operator_is():
    one, x = layer("pivoted", 45, 50, 13, biased=True).to(interpreted.DEVICE), random(2, 50).to(interpreted.DEVICE)
    part = one.outputs()
    matrices = [part.factor.weight.detach()], None, 0, [part.matrix.numbers.detach()]
    arguments = (x, *matrices, [part.table], [part.bias.detach()], [part.copies, 0, 13], [], 0, 0)
    torch.library.opcheck(few_tokens, arguments)
