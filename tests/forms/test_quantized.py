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
from slimrank.forms.quantized import GROUP, QuantizedLinear, dequantize, pack_halves
from slimrank.model.load import Loaded


def filled(bits: int, out: int = 5, inp: int = 40, bias: bool = False) -> tuple[QuantizedLinear, torch.Tensor]:
    """A layer of known whole numbers, and its weight."""
    generator = torch.Generator().manual_seed(bits)
    layer = QuantizedLinear(nn.Linear(inp, out, bias=bias), bits)
    width = inp if bits == 8 else -(-inp // GROUP) * GROUP
    low = -(2 ** (bits - 1))
    numbers = torch.randint(low, -low, (out, width), generator=generator)
    scale = torch.rand(layer.scale.shape, generator=generator) + 0.1
    layer.weight.copy_(numbers if bits == 8 else pack_halves(numbers))
    layer.scale.copy_(scale)
    spread = scale.repeat_interleave(width // scale.shape[1], dim=1)
    return layer, (numbers * spread)[:, :inp]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_multiplies_with_its_numbers_times_their_scales(bits, bias):
    layer, weight = filled(bits, bias=bias)
    x = torch.randn(3, 2, 40)
    torch.testing.assert_close(layer.matrix(), weight)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, layer.bias), rtol=1e-5, atol=1e-4)
    assert dequantize(layer.weight, layer.scale, 40).shape == (5, 40)
    assert layer.weight.element_size() * layer.weight.numel() == (5 * 40 if bits == 8 else 5 * 64 // 2)


@pytest.mark.parametrize("bits", [8, 4])
@torch.no_grad()
def test_float16_does_not_overflow_before_the_scale(bits):
    layer, weight = filled(bits, inp=1024)
    layer.scale.mul_(0.01)
    x = torch.full((1, 1024), 8.0) * weight[0].sign()  # 127 * 8 * 1024 is beyond float16
    found = layer.half()(x.half())
    torch.testing.assert_close(found.float(), 0.01 * x @ weight.T, rtol=5e-3, atol=1.0)


@pytest.mark.parametrize("form", FORMS)
def test_a_shell_of_the_entry_takes_the_state(form):
    entry = {"form": form, "rank": 3, "bits": 8}
    shell = form_of("a", entry).shell(nn.Linear(8, 12), entry)
    again = form_of("a", shell.entry()).shell(nn.Linear(8, 12), shell.entry())
    assert shell.entry().items() >= entry.items()
    again.load_state_dict(shell.state_dict())
    assert {tensor.dtype for name, tensor in shell.state_dict().items() if name.count(".") and "weight" in name} == {
        torch.int8
    }


def test_bits_that_cannot_be():
    with pytest.raises(SlimrankError, match="The layer a has factors of 3 bits; give 8 or 4"):
        form_of("a", {"form": "low_rank", "rank": 2, "bits": 3})
    with pytest.raises(SlimrankError, match="pivoted, whose factors can't have 4 bits: its coefficients"):
        form_of("a", {"form": "pivoted", "rank": 2, "bits": 4})


def test_a_model_of_quantized_factors_alone_is_counted_like_that_of_floats():
    model = compress(llama(), "low_rank", "pivoted")
    floats = Loaded("tiny", model, None, torch.float32, None)
    expected, read, whole = linear_parameters(floats), read_numbers(model), count_parameters(model)
    for form in [module for module in model.modules() if isinstance(module, Form)]:
        form.use_bits(8)
    assert (linear_parameters(floats), read_numbers(model), count_parameters(model)) == (expected, read, whole)
