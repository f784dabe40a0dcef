import copy
from types import SimpleNamespace

import pytest
import torch
from architectures import llama
from lossless import compress
from torch import nn

from slimrank.errors import SlimrankError
from slimrank.evaluate.models import linear_parameters
from slimrank.evaluate.results import count_parameters
from slimrank.evaluate.speed import read_numbers
from slimrank.forms import FORMS, Form, form_of
from slimrank.forms.quantized import QuantizedLinear
from slimrank.model.load import Loaded


def filled(bits: int, group: int | None = None, out: int = 5, inp: int = 40, bias: bool = False):
    """A layer of known whole numbers, and its weight."""
    generator = torch.Generator().manual_seed(bits)
    layer = QuantizedLinear(nn.Linear(inp, out, bias=bias), bits, group)
    low = -(2 ** (bits - 1))
    numbers = torch.randint(low, -low, (out, inp), generator=generator).to(torch.int8)
    scale = torch.rand(layer.scale.shape, generator=generator) + 0.1
    layer.store(numbers, scale)
    return layer, numbers * scale.repeat_interleave(group or inp, dim=1)[:, :inp]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("group", [None, 16, 32])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
@torch.no_grad()
def test_multiplies_with_its_numbers_times_their_scales(bits, group, bias):
    layer, weight = filled(bits, group, bias=bias)
    x = torch.randn(3, 2, 40)
    assert torch.equal(layer.matrix(), weight)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
@torch.no_grad()
def test_float16_does_not_overflow_before_the_scale(bits, group):
    layer, weight = filled(bits, group, inp=1024)
    layer.scale.mul_(0.01)
    x = torch.full((1, 1024), 8.0) * weight[0].sign()  # 127 * 8 * 1024 is beyond float16
    found = layer.half()(x.half())
    torch.testing.assert_close(found.float(), 0.01 * x @ weight.T, rtol=5e-3, atol=1.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_shell_of_the_entry_takes_the_state(form):
    entry = {"form": form, "rank": 3, "bits": 8, "group": 16}
    shell = form_of("a", entry).shell(nn.Linear(8, 12), entry)
    again = form_of("a", shell.entry()).shell(nn.Linear(8, 12), shell.entry())
    expected = {key: value for key, value in entry.items() if FORMS[form].ranked or key != "rank"}
    assert shell.entry().items() >= expected.items()
    again.load_state_dict(shell.state_dict())
    assert {tensor.dtype for name, tensor in shell.state_dict().items() if name.count(".") and "weight" in name} == {
        torch.int8
    }


def test_the_layout_of_checkpoints_without_groups_is_read():
    """Rows of 8 bits have a scale, those of 4 bits are filled up to a multiple of 32, and the entry has no group."""
    halves = torch.tensor([[0x21, 0xF8, *[0x88] * 14, 0x0F, *[0x88] * 15]], dtype=torch.uint8)
    tensors = {"down.weight": halves, "down.scale": torch.tensor([[0.5, 2.0]])}
    ups = torch.tensor([[7 + 8]], dtype=torch.uint8), torch.full((1, 15), 0x88, dtype=torch.uint8)
    tensors |= {"up.weight": torch.cat(ups, 1), "up.scale": torch.tensor([[1.0]])}
    layer = form_of("a", {"form": "low_rank", "rank": 1, "bits": 4}).from_stored(
        "a", 34, {"form": "low_rank", "rank": 1, "bits": 4}, tensors
    )
    expected = torch.zeros(1, 34, dtype=torch.float64)
    expected[0, :4] = 0.5 * torch.tensor([1 - 8, 2 - 8, 0, 7])
    expected[0, 32:] = 2.0 * torch.tensor([7, -8])
    assert torch.equal(layer.dense_weight(), 7 * expected)
    assert layer.entry() == {"form": "low_rank", "rank": 1, "bits": 4, "group": 32}
    eight = {"form": "low_rank", "rank": 1, "bits": 8}
    down = {"down.weight": torch.tensor([[-128, 127, 3]], dtype=torch.int8), "down.scale": torch.tensor([[0.25]])}
    up = {"up.weight": torch.tensor([[2]], dtype=torch.int8), "up.scale": torch.tensor([[1.0]])}
    layer = form_of("a", eight).from_stored("a", 3, eight, down | up)
    assert layer.dense_weight().tolist() == [[-64.0, 63.5, 1.5]] and layer.entry() == eight


def test_what_cannot_be_stored_is_one_sentence():
    layer, _ = filled(3, 16)
    numbers, scale = layer.numbers(), layer.scale.clone()
    with pytest.raises(
        SlimrankError, match=r"A layer of \(5, 40\) takes whole numbers of that shape and scales \(5, 3\)"
    ):
        layer.store(numbers[:, 1:], scale)
    with pytest.raises(SlimrankError, match="Whole numbers of 3 bits lie from -4 to 3"):
        layer.store(numbers + 1, scale)
    scale[0, 0] = torch.nan
    with pytest.raises(SlimrankError, match="hold NaN or Inf"):
        layer.store(numbers, scale)


def test_bits_and_groups_that_cannot_be():
    with pytest.raises(SlimrankError, match="The layer a has factors of 5 bits; give 8, 4, 3 or 2"):
        form_of("a", {"form": "low_rank", "rank": 2, "bits": 5})
    with pytest.raises(SlimrankError, match="pivoted, whose factors can't have 4 bits: its coefficients"):
        form_of("a", {"form": "pivoted", "rank": 2, "bits": 4})
    for wrong in ({"group": 32}, {"bits": 4, "group": 0}, {"bits": 4, "group": "row"}):
        with pytest.raises(SlimrankError, match=r"The layer a has groups of .* give bits, and a group from 1 on"):
            form_of("a", {"form": "dense"} | wrong)


def test_a_model_of_quantized_factors_alone_is_counted_like_that_of_floats():
    model = compress(llama(), "low_rank", "pivoted", "dense")
    floats = Loaded("tiny", model, None, torch.float32, None)
    expected, read, whole = linear_parameters(floats), read_numbers(model), count_parameters(model)
    for form in [module for module in model.modules() if isinstance(module, Form)]:
        form.use_bits(8)
    assert (linear_parameters(floats), read_numbers(model), count_parameters(model)) == (expected, read, whole)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("bits", "group"), [(8, None), (8, 32), (8, 24), (4, 32), (4, 64), (4, 20), (3, 64), (2, None)]
)
@torch.no_grad()
def test_any_number_of_rows_gives_the_product_in_float64(bits, group, biased, dtype):
    layer, weight = filled(bits, group, out=300, inp=160, bias=biased)
    layer = layer.to(dtype)
    weight = layer.matrix(torch.float64)
    bias = None if layer.bias is None else layer.bias.double()
    for rows in (1, 2, 16, 17, 300):
        x = torch.randn(2, rows, 160).to(dtype)[:1]
        expected = nn.functional.linear(x.double(), weight, bias)
        assert layer(x).dtype == dtype and layer(x).shape == (1, rows, 300)
        assert (layer(x) - expected).norm() < (1e-5 if dtype == torch.float32 else 8e-3) * expected.norm()


@pytest.mark.parametrize(
    ("bits", "group", "packed"), [(8, None, False), (8, 32, True), (4, 32, True), (4, 20, False), (3, None, True)]
)
@torch.no_grad()
def test_what_is_packed_for_the_kernel_follows_what_is_stored(bits, group, packed):
    layer, _ = filled(bits, group, out=48, inp=96)
    x, state = torch.randn(1, 96), {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    layer(x)
    assert (layer._packed is not None and layer._packed[1] is not None) == packed
    assert layer.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in layer.state_dict().items())
    layer.store(-layer.numbers().clamp(min=1 - 2 ** (bits - 1)), 2 * layer.scale)
    torch.testing.assert_close(layer(x), x @ layer.matrix().T, rtol=1e-4, atol=1e-4)
    layer.load_state_dict(state)
    torch.testing.assert_close(layer(x), x @ layer.matrix().T, rtol=1e-4, atol=1e-4)
    copied = copy.deepcopy(layer)
    copied.scale.mul_(3)
    torch.testing.assert_close(copied(x), 3 * layer(x), rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        assert torch.equal(layer(x), layer(x.clone()))


def test_gradients_reach_the_input():
    for bits in (8, 4):
        layer, weight = filled(bits, 32, out=48, inp=96)
        x = torch.randn(3, 96, requires_grad=True)
        layer(x).sum().backward()
        torch.testing.assert_close(x.grad, weight.sum(0).expand(3, 96), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("device", "more"), [("cuda", "; slimrank.serve.optimize.optimize takes others"), ("mps", "")])
def test_away_from_a_cpu_it_says_that_numbers_become_floats(device, more):
    away = SimpleNamespace(weight=SimpleNamespace(device=torch.device(device)))
    why = QuantizedLinear.why_floats(away)
    assert why is not None and why.startswith(
        f"torch's kernels for few bits are used on a CPU only, and this is {device}{more}"
    )
