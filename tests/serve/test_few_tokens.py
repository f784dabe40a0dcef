import copy

import interpreted
import pytest
import torch
from architectures import ARCHITECTURES, llama
from joined import join
from lossless import compress, rounded
from torch import nn
from transformers import AutoModelForCausalLM

from slimrank.checkpoint import write_checkpoint
from slimrank.forms import Form, compressed_layers, link
from slimrank.forms.quantized import QuantizedLinear
from slimrank.model.compressible import plain_ends
from slimrank.model.modules import set_module
from slimrank.refine.ends import end_grid, round_ends
from slimrank.run.quantize import quantized
from slimrank.serve import few_tokens
from slimrank.serve.optimize import optimize
from slimrank.serve.packed import Packed

FORMS = ("low_rank", "pivoted", "columns")


@pytest.fixture
def calls(monkeypatch):
    """The kernels are for this machine's device; the inputs' sizes by call of the operator."""
    operator, found = few_tokens.few_tokens, []
    monkeypatch.setattr(few_tokens, "DEVICE", interpreted.DEVICE)
    monkeypatch.setattr(few_tokens, "few_tokens", lambda *given: found.append(given[0].shape) or operator(*given))
    return found


@pytest.fixture
def tokens():
    return torch.randint(3, 96, (2, 7), generator=torch.Generator().manual_seed(0)).to(interpreted.DEVICE)


def mixed(model):
    """Every form and some dense linears in one model."""
    dense = copy.deepcopy(model)
    compressed = compress(model, *FORMS)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"):
        compressed.set_submodule(name, dense.get_submodule(name))
    return compressed.to(interpreted.DEVICE)


def whole(bits, *forms):
    """Every linear in so many bits, embedding and the head that is tied to it too."""
    model = rounded(llama(num_hidden_layers=2, tie_word_embeddings=True), bits, None if bits == 8 else 16, *forms)
    round_ends(model, dict.fromkeys(plain_ends(model), end_grid(bits)))
    return model.to(interpreted.DEVICE)


def joined(rank=9):
    return join(llama(), rank).to(interpreted.DEVICE)


@pytest.mark.parametrize(
    "name",
    ["llama", "qwen2", *(pytest.param(n, marks=pytest.mark.slow) for n in ARCHITECTURES if n not in "llama qwen2")],
)
@torch.no_grad()
def test_a_model_gives_the_same_logits_and_tokens(name, tokens, calls):
    model = compress(ARCHITECTURES[name](), *FORMS).to(interpreted.DEVICE)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    logits, generated = model(tokens).logits, model.generate(tokens, **options)
    optimize(model)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-5, atol=1e-5)
    assert calls
    assert torch.equal(model.generate(tokens, **options), generated)


@torch.no_grad()
def test_a_unit_is_one_call_also_with_dense_layers_in_it_and_of_joint_layers(tokens, calls):
    for model, count in ((mixed(llama(num_hidden_layers=2)), None), (joined(), 4)):
        logits = model(tokens).logits
        torch.testing.assert_close(optimize(model)(tokens).logits, logits, rtol=1e-5, atol=1e-5)
        assert count is None or len(calls) == count  # q + k + v, gate + up in each block
        served = [unit for unit in found_units(model) if len(unit.layers) > 1]
        assert all(unit.held is None for unit in served) and served
        calls.clear()


@pytest.mark.parametrize(
    ("bits", "forms", "count"),
    [
        (8, ("low_rank",), 4 * 2 + 1),  # q + k + v, o, gate + up, down, and the head
        (4, ("dense",), 4 * 2 + 1),
        (8, ("low_rank", "dense", "pivoted"), None),
        pytest.param(4, ("columns", "low_rank"), None, marks=pytest.mark.slow),
        pytest.param(3, ("low_rank", "dense"), None, marks=pytest.mark.slow),
        pytest.param(2, ("dense", "low_rank"), None, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_layers_of_few_bits_are_computed_from_their_numbers(bits, forms, count, tokens, calls, monkeypatch):
    model = whole(bits, *forms)
    options = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    logits, generated = model(tokens).logits, model.generate(tokens, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimize(model)
    for name in ("forward", "matrix"):  # nothing is multiplied, or made floats, by the layers themselves
        monkeypatch.setattr(QuantizedLinear, name, None)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    assert len(calls) == count if count else calls
    assert torch.equal(model.generate(tokens, **options), generated)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(unit.held is None for unit in found_units(model))


@torch.no_grad()
def test_joint_layers_of_few_bits_are_a_unit_and_are_saved_as_they_were(tokens, calls, tmp_path):
    model = joined()
    for name in compressed_layers(model):
        set_module(model, name, quantized(model.get_submodule(name), 8))
    link(model)
    logits = model(tokens).logits
    torch.testing.assert_close(optimize(model)(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    assert len(calls) == 4  # q + k + v, gate + up in each block
    wide = [m.weight for m in model.modules() if isinstance(m, QuantizedLinear) and m.weight.stride() == (16, 1)]
    assert wide and all(weight.shape[1] == 9 for weight in wide)
    write_checkpoint(model, tmp_path / "out", layers=compressed_layers(model), dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(loaded(tokens.cpu()).logits, logits.cpu(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_many_tokens_of_few_bits_take_the_layers(tokens, calls):
    model, other = whole(4, "low_rank"), whole(4, "low_rank")
    optimize(model)
    calls.clear()
    many = tokens.repeat(1, 5)  # 70 tokens
    torch.testing.assert_close(model(many).logits, other(many).logits, rtol=1e-5, atol=1e-5)
    assert not calls


def found_units(model):
    return {id(m.forward.func): m.forward.func for m in model.modules() if "forward" in vars(m)}.values()


@torch.no_grad()
def test_many_tokens_gradients_and_other_dtypes_take_the_layers(tokens, calls):
    model = mixed(llama())
    optimize(model)
    model(tokens.repeat(1, 5))  # 70 tokens
    with torch.enable_grad():
        assert model(tokens).logits.isfinite().all()
    with torch.autocast(interpreted.DEVICE, torch.bfloat16):
        model(tokens)
    model.double()(tokens)
    assert not calls
    model.float()(tokens)
    assert calls


@torch.no_grad()
def test_the_state_is_as_before_and_what_is_loaded_is_computed_with(tokens, calls):
    model, other = compress(llama(), "pivoted"), compress(llama(), "pivoted")
    for one in other.parameters():
        one.data.mul_(1.1)
    for module in other.modules():
        if isinstance(module, Form):  # other outputs are pivots
            module.permute_outputs(torch.arange(module.out_features).flip(0))
    model, other = model.to(interpreted.DEVICE), other.to(interpreted.DEVICE)
    before = {name: tensor.shape for name, tensor in model.state_dict().items()}
    layers = compressed_layers(model)
    optimize(model)(tokens)
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == before
    assert compressed_layers(model) == layers
    model.load_state_dict(other.state_dict())
    calls.clear()
    torch.testing.assert_close(model(tokens).logits, other(tokens).logits, rtol=1e-5, atol=1e-5)
    assert calls


@torch.no_grad()
def test_copies_and_a_second_time(tokens, calls):
    model = optimize(mixed(llama()))
    logits = model(tokens).logits
    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data.mul_(1.5)
    assert (twin(tokens).logits - logits).abs().max() > 0.01
    torch.testing.assert_close(model(tokens).logits, logits, rtol=0, atol=0)
    torch.testing.assert_close(optimize(model)(tokens).logits, logits, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("build", [joined, lambda: mixed(llama()), lambda: whole(4)], ids=["joint", "mixed", "bits"])
@torch.no_grad()
def test_compiles_to_one_graph(build, tokens, calls, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(few_tokens, "DEVICE", interpreted.DEVICE)
    model = build()
    logits = model(tokens).logits
    optimize(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        torch.testing.assert_close(compiled(tokens).logits, logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_layer_whose_factor_was_replaced_is_computed_by_itself(tokens, calls):
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = compress(llama(num_hidden_layers=1), "low_rank").to(interpreted.DEVICE)
    expected = copy.deepcopy(model)
    optimize(model)
    for one in (model, expected):
        one.model.layers[0].mlp.down_proj.up.__class__ = Doubled
    torch.testing.assert_close(model(tokens).logits, expected(tokens).logits, rtol=1e-5, atol=1e-5)


def test_rows_are_padded_to_be_read_in_wide_pieces_and_saved_as_they_are(calls):
    model = joined()
    optimize(model)
    packs = [module for module in model.modules() if isinstance(module, Packed)]
    assert packs and all(pack.weight.stride() == (16, 1) and pack.weight.shape[1] == 9 for pack in packs)
    assert all(tensor.is_contiguous() for name, tensor in model.state_dict().items() if "others" in name)


def test_a_machine_without_the_kernels_says_why(calls, monkeypatch, tokens):
    monkeypatch.setattr(few_tokens.importlib.util, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"^Triton isn't installed, so .*: pip install triton\.$"):
        model = optimize(mixed(llama()))
    with torch.no_grad():
        model(tokens)
    assert not calls
    cuda = torch.device("cuda")
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert few_tokens.unavailable(cuda, torch.float16) is None
    assert "Tesla T4 (compute capability 7.5) has no bfloat16" in few_tokens.unavailable(cuda, torch.bfloat16)
    assert "not float64" in few_tokens.unavailable(cuda, torch.float64)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    assert "older than Triton supports" in few_tokens.unavailable(cuda, torch.float16)
