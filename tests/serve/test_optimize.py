import copy
import sys

import pytest
import torch
from architectures import ARCHITECTURES, llama
from lossless import compress
from transformers import AutoModelForCausalLM

from slimrank.checkpoint import write_checkpoint
from slimrank.forms import compressed_layers
from slimrank.serve.optimize import optimize, shared_inputs
from slimrank.serve.packed import Packed, PackedPart

FORMS = ("low_rank", "pivoted", "columns")


@pytest.fixture
def tokens():
    return torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(0))


def mixed(model):
    """Every form and some dense linears in one model."""
    dense = copy.deepcopy(model)
    compressed = compress(model, *FORMS)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"):
        compressed.set_submodule(name, dense.get_submodule(name))
    return compressed


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_gives_the_same_logits_and_tokens(name, tokens):
    model = compress(ARCHITECTURES[name](), *FORMS)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    logits, generated = model(tokens).logits, model.generate(tokens, **options)
    optimize(model)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.generate(tokens, **options), generated)


def test_groups_are_the_linears_that_read_one_tensor():
    groups = shared_inputs(compress(llama(num_hidden_layers=1), "low_rank"))
    block = "model.layers.0"
    assert groups == [
        [f"{block}.self_attn.{name}_proj.down" for name in "qkv"],
        [f"{block}.mlp.{name}_proj.down" for name in ("gate", "up")],
    ]
    assert shared_inputs(ARCHITECTURES["gpt2"]()) == []


@torch.no_grad()
def test_dense_and_compressed_layers_share_a_pack(tokens):
    model = mixed(llama())
    logits = model(tokens).logits
    optimize(model)
    assert isinstance(model.model.layers[0].self_attn.q_proj, PackedPart)
    torch.testing.assert_close(model(tokens).logits, logits, rtol=1e-5, atol=1e-5)


def test_biases_stay_with_the_layers_that_have_one(tokens):
    model = ARCHITECTURES["qwen2"]()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        logits = model(tokens).logits
        torch.testing.assert_close(optimize(model)(tokens).logits, logits, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_saves_and_loads_as_before(tokens, tmp_path):
    model = mixed(llama(tie_word_embeddings=True))
    names = set(model.state_dict())
    optimize(model)
    assert set(model.state_dict()) == names
    write_checkpoint(model, tmp_path / "out", layers=compressed_layers(model), dtype=torch.float32)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)
    other = optimize(mixed(llama(tie_word_embeddings=True)))
    state = loaded.state_dict()
    state |= {name: tensor + 0.01 for name, tensor in state.items() if tensor.is_floating_point()}
    other.load_state_dict(state)
    loaded.load_state_dict(state)
    torch.testing.assert_close(other(tokens).logits, loaded(tokens).logits, rtol=1e-5, atol=1e-5)
    del state["model.layers.0.self_attn.q_proj.weight"]
    with pytest.raises(RuntimeError, match=r"q_proj\.weight"):
        other.load_state_dict(state)


@torch.no_grad()
def test_changes_dtype_and_is_copied_like_any_model(tokens):
    model = optimize(mixed(llama()))
    logits = model(tokens).logits
    torch.testing.assert_close(copy.deepcopy(model)(tokens).logits, logits, rtol=0, atol=0)
    assert (model.to(torch.bfloat16)(tokens).logits - logits).abs().max() < 0.2
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_compiles_to_one_graph(tokens):
    model = optimize(mixed(llama(num_hidden_layers=2)))
    logits = model(tokens).logits
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens).logits, logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_part_called_alone_computes_its_own():
    model = llama(num_hidden_layers=1)
    attention = model.model.layers[0].self_attn
    x = torch.randn(3, 32)
    alone = attention.k_proj(x)
    optimize(model)
    torch.testing.assert_close(attention.k_proj(x), alone, rtol=1e-6, atol=1e-6)
    attention.q_proj(x.clone())
    torch.testing.assert_close(attention.k_proj(x), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("line", range(16))
@torch.no_grad()
def test_another_threads_call_before_any_line_changes_nothing(line):
    attention = (model := llama(num_hidden_layers=1)).model.layers[0].self_attn
    names, x, other = ("q_proj", "k_proj", "v_proj"), torch.randn(3, 32), torch.randn(3, 32)
    alone = [attention.get_submodule(name)(x) for name in names]
    optimize(model)
    lines = iter(range(1000))

    def interrupt(frame, event, argument):
        if frame.f_code is not Packed.forward.__code__:
            return None
        if event == "line" and next(lines) == line:
            attention.q_proj(other)
        return interrupt

    before = sys.gettrace()
    sys.settrace(interrupt)
    try:
        found = [attention.get_submodule(name)(x) for name in names]
    finally:
        sys.settrace(before)
    assert next(lines) > line
    torch.testing.assert_close(found, alone, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_twice_is_once(tokens):
    model = mixed(llama())
    logits = optimize(model)(tokens).logits
    assert torch.equal(optimize(model)(tokens).logits, logits)
    model = compress(llama(), "pivoted")
    logits = optimize(model)(tokens).logits
    assert torch.equal(optimize(model)(tokens).logits, logits)
