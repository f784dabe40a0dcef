"""Layers of whole numbers through the operator, beside their own matrices multiplied out in float64."""

import interpreted
import pytest
import torch
from random_layers import layer, of_few_bits, random
from torch import Tensor, nn

from slimrank.errors import SlimrankError
from slimrank.forms import Form
from slimrank.forms.embedding import Embedding, TiedHead
from slimrank.forms.joint import joint_layers
from slimrank.numerics.packing import unpack
from slimrank.serve.few_tokens import computed, widen
from slimrank.serve.kernels.operator import few_tokens
from slimrank.serve.kernels.tensors import check_tensors

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}
CASES = [("low_rank", 8), ("low_rank", 4), ("low_rank", 3), ("low_rank", 2), ("columns", 8), ("columns", 4),
         ("dense", 8), ("dense", 4), ("dense", 3), ("dense", 2), ("pivoted", 8), ("joint", 8)]  # fmt: skip
slow = pytest.mark.slow


@torch.no_grad()
def check(layers: list[Form], x: Tensor) -> None:
    """The operator gives what float64 does of the numbers times their scales, nearly."""
    found = computed(x, [one.outputs() for one in layers])
    assert found is not None
    for one, y in zip(layers, found, strict=True):
        bias = one.dense_bias()
        exact = x.double() @ one.dense_weight().T + (0 if bias is None else bias.double())
        assert y.dtype == x.dtype
        torch.testing.assert_close(y.double(), exact, rtol=0, atol=4 * DTYPES[x.dtype] * exact.abs().max().item())


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize(("form", "bits"), CASES)
def test_multiplies_by_numbers_as_they_are_stored(form, bits, tokens):
    for group, dtype in ((None, torch.bfloat16), (16, torch.float32)):
        one = of_few_bits(layer(form, 45, 50, 13, biased=True), bits, group)
        check([one.to(interpreted.DEVICE, dtype)], random(tokens, 50).to(interpreted.DEVICE, dtype))


@slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 2, 17, 64])
@pytest.mark.parametrize(("form", "bits"), CASES)
def test_of_any_size_group_and_dtype(form, bits, tokens, dtype):
    for out, inp, rank in ((45, 50, 13), (96, 64, 32), (33, 300, 17), (300, 33, 33), (16, 16, 16), (7, 5, 1)):
        rank = min(rank, out, inp - inp // 3 if form == "columns" else inp)
        for group in (None, 32, 7, 128):
            one = of_few_bits(layer(form, out, inp, rank, biased=group is None), bits, group)
            check([one.to(interpreted.DEVICE, dtype)], random(tokens, inp).to(interpreted.DEVICE, dtype))


@pytest.mark.parametrize("group", [32, 48, 512])
@pytest.mark.parametrize("bits", [8, 4])
def test_groups_smaller_and_larger_than_a_block_and_none_of_its_parts(bits, group):
    for tokens in (1, 3):
        one = of_few_bits(layer("low_rank", 20, 1200, 9), bits, group).to(interpreted.DEVICE)
        check([one], random(tokens, 1200).to(interpreted.DEVICE))


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_rank_0_and_full_rank(bits):
    for rank in (0, 24):
        for group in (None, 8):
            one = of_few_bits(layer("low_rank", 24, 40, rank, biased=True), bits, group)
            check([one.to(interpreted.DEVICE)], random(3, 40).to(interpreted.DEVICE))
    if bits == 8:  # every row a pivot: nothing but copies
        one = of_few_bits(layer("pivoted", 24, 40, 24, biased=True), bits).to(interpreted.DEVICE)
        assert one.others is None
        check([one], random(3, 40).to(interpreted.DEVICE))


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("bits", [8, 4])
def test_several_layers_are_computed_together(bits, tokens):
    """More factors than one launch takes, and dense layers, which have no second product."""
    x = random(tokens, 40).to(interpreted.DEVICE)
    for forms in (("low_rank",) * 5, ("dense",) * 4):
        some = [
            of_few_bits(layer(form, 9 + 8 * at, 40, 3 + at, at % 2 == 0), bits, 16) for at, form in enumerate(forms)
        ]
        check([one.to(interpreted.DEVICE) for one in some], x)


def test_joint_layers_share_one_factor_also_beside_others():
    left = torch.cat([random(9, 6), 1e-6 * random(5, 6), random(20, 6, seed=2)])
    group = joint_layers(left, random(6, 40) / 15, (9, 5, 20), [random(9), None, random(20)], "q")
    alone = layer("pivoted", 30, 40, 8)
    layers = [of_few_bits(one, 8).to(interpreted.DEVICE) for one in (*group, alone)]
    check(layers, random(3, 40).to(interpreted.DEVICE))


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_a_tied_head_reads_the_embedding(bits):
    embedding = Embedding(nn.Embedding(37, 24), bits)
    numbers = torch.randint(-(2 ** (bits - 1)), 2 ** (bits - 1), (37, 24), dtype=torch.int8)
    embedding.table.store(numbers, torch.rand(embedding.table.scale.shape) / 100)
    head = TiedHead(embedding.to(interpreted.DEVICE), nn.Parameter(random(37).to(interpreted.DEVICE)))
    x = random(2, 3, 24).to(interpreted.DEVICE)
    (y,) = computed(x, [head.outputs()])
    exact = x.double() @ embedding.table.matrix(torch.float64).T + head.bias.double()
    torch.testing.assert_close(y.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["low_rank", "dense"])
@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 16), (4, 16), (4, None)])
@torch.no_grad()
def test_nan_in_a_scale_or_a_token_is_passed_on(form, bits, group):
    one = of_few_bits(layer(form, 45, 50, 13), bits, group).to(interpreted.DEVICE)
    last, x = (one.up if form == "low_rank" else one.whole), random(4, 50).to(interpreted.DEVICE)
    last.scale[7, -1] = torch.nan
    x[2, 49] = torch.nan
    (y,) = computed(x, [one.outputs()])
    expected = torch.zeros(4, 45, dtype=torch.bool, device=y.device)
    expected[2], expected[:, 7] = True, True
    assert torch.equal(y.isnan(), expected)


@pytest.mark.parametrize("bits", [8, 4, 3])
@torch.no_grad()
def test_tensors_of_any_layout(bits):
    one = of_few_bits(layer("low_rank", 45, 50, 13), bits, 16).to(interpreted.DEVICE)
    for factor in (one.down, one.up):
        for name in ("weight", "scale"):  # columns first, then a part of a wider row
            tensor = getattr(factor, name)
            setattr(factor, name, tensor.T.contiguous().T if name == "scale" else wide(tensor))
    for x in (random(50, 6).T, random(4, 100)[:, ::2], random(2, 3, 70)[..., :50], random(2, 0, 50), random(50)):
        x = x.to(interpreted.DEVICE)
        (y,) = computed(x, [one.outputs()])
        torch.testing.assert_close(y.double(), x.double() @ one.dense_weight().T, rtol=1e-5, atol=1e-5)


def wide(tensor: Tensor) -> Tensor:
    """The tensor as columns of one that holds other numbers behind them."""
    return torch.cat([tensor, torch.full_like(tensor, 85)], 1)[:, : tensor.shape[1]]


def test_rows_of_8_bits_are_padded_to_be_read_in_wide_pieces_and_packed_ones_stay():
    for bits, stride in ((8, 64), (4, 32), (2, 16), (3, 24)):
        one = of_few_bits(layer("dense", 20, 50, 13), bits, 16).to(interpreted.DEVICE)
        before = one.whole.numbers().clone()
        widen(one.whole)
        assert one.whole.weight.stride() == (stride, 1) and torch.equal(one.whole.numbers(), before)
        assert torch.equal(unpack(one.whole.weight, bits, 50), before)
        check([one], random(2, 50).to(interpreted.DEVICE))


def test_factors_that_are_not_alike_are_left_to_the_layers():
    x, eight = random(2, 40), of_few_bits(layer("low_rank", 20, 40, 5), 8)
    four, coarse = of_few_bits(layer("low_rank", 20, 40, 5), 4), of_few_bits(layer("low_rank", 20, 40, 5), 4, 16)
    floats = layer("low_rank", 20, 40, 5)
    for other in (four, floats):
        assert computed(x, [eight.outputs(), other.outputs()]) is None
    assert computed(x, [four.outputs(), coarse.outputs()]) is None
    assert computed(x.double(), [eight.outputs()]) is None
    assert computed(x, [eight.to("meta").outputs()]) is None


def test_what_it_cannot_take_is_one_sentence():
    x, numbers, scale = random(2, 50).to(interpreted.DEVICE), torch.zeros(9, 32, dtype=torch.uint8), torch.ones(9, 1)
    numbers, scale = numbers.to(x.device), scale.to(x.device)

    def call(numbers: Tensor, scale: Tensor | None, bits: int, group: int = 0) -> Tensor:
        return few_tokens(x, [], None, 50, [numbers], [None], [None], [0, 0, 0], [scale], bits, group)

    assert torch.isfinite(call(numbers, scale, 4)).all()
    with pytest.raises(SlimrankError, match=r"takes whole numbers of 8, 4, 3 or 2 bits, not 5\."):
        call(numbers, scale, 5)
    for wrong in ((numbers, scale, 8), (numbers[:, :16], scale, 4), (numbers.to(torch.int8), scale, 4)):
        with pytest.raises(SlimrankError, match=r"takes rows of 50 numbers of [84] bits as torch\.u?int8 \(9, [35].\)"):
            call(*wrong)
    with pytest.raises(SlimrankError, match=r"with scales \(9, 2\), not as torch\.uint8 \(9, 32\) with \(9, 1\)\."):
        call(numbers, scale, 4, 32)
    with pytest.raises(SlimrankError, match="with none"):
        call(numbers, None, 4)
    with pytest.raises(SlimrankError, match="one for all, not bfloat16 and float32"):
        call(numbers, scale.bfloat16(), 4)
    with pytest.raises(SlimrankError, match=r"tensors of one device, not of .* and meta\."):
        check_tensors(x, [scale], [numbers.to("meta")])


def test_the_fake_is_as_the_operator_is():
    x = random(2, 50).to(interpreted.DEVICE)
    one = of_few_bits(layer("low_rank", 45, 50, 13, biased=True), 4, 16).to(interpreted.DEVICE)
    factors, scales = [one.down.weight], [one.down.scale, one.up.scale]
    arguments = (x, factors, None, 0, [one.up.weight], [None], [one.up.bias.detach()], [0, 0, 13], scales, 4, 16)
    torch.library.opcheck(few_tokens, arguments)
    whole = of_few_bits(layer("dense", 45, 50, 13), 8).whole.to(interpreted.DEVICE)
    torch.library.opcheck(few_tokens, (x, [], None, 50, [whole.weight], [None], [None], [0, 0, 0], [whole.scale], 8, 0))
