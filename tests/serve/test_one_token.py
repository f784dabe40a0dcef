import shutil

import pytest
import torch
from architectures import ARCHITECTURES, llama
from lossless import compress
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import DynamicCache, StaticCache

from slimrank.evaluate.decoding import decoder
from slimrank.serve.one_token import ATTENTION, Linear, attend, product
from slimrank.serve.optimize import optimize

BF16 = torch.bfloat16


def sixteen(model):
    return compress(model, "low_rank", "pivoted", "columns").to(BF16)


def steps_of(model, cache):
    """Logits (3, vocabulary) of a prompt of four tokens and of two tokens after it, one at a time."""
    tokens = torch.tensor([[5, 9, 40, 7]])
    logits = [model(tokens, past_key_values=cache).logits[0, -1]]
    for token in (11, 60):
        logits.append(model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1])
    return torch.stack(logits).float()


@pytest.mark.parametrize("bias", [False, True])
@torch.no_grad()
def test_a_row_is_multiplied_as_by_linear(bias):
    x, weight = torch.randn(1, 1, 96).to(BF16), torch.randn(40, 96).to(BF16)
    add = torch.randn(40).to(BF16) if bias else None
    exact = linear(x.double(), weight.double(), None if add is None else add.double())
    assert product(x, weight, add).shape == (1, 1, 40) and torch.backends.mkldnn.enabled
    torch.testing.assert_close(product(x, weight, add).double(), exact, rtol=1e-2, atol=5e-2)
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, weight, add).double(), exact, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("mask", [None, "bool", "added"])
@torch.no_grad()
def test_one_query_attends_as_in_sdpa(mask):
    query, key, value = torch.randn(2, 6, 1, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8)
    looked = torch.rand(2, 1, 1, 11) < 0.6
    looked[..., 0] = True
    given = {None: None, "bool": looked, "added": torch.zeros(2, 1, 1, 11).masked_fill(~looked, -1e30)}[mask]
    wanted = scaled_dot_product_attention(query, key, value, given, scale=0.3, enable_gqa=True).transpose(1, 2)
    torch.testing.assert_close(attend(query, key, value, given, 0.3), wanted, rtol=1e-5, atol=1e-5)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(query, key, value, given, 0.3), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_decodes_as_before_in_bfloat16(name):
    model = sixteen(ARCHITECTURES[name]())
    before = steps_of(model, DynamicCache(config=model.config))
    optimize(model)
    assert model.config._attn_implementation in (ATTENTION, "eager")
    torch.testing.assert_close(steps_of(model, DynamicCache(config=model.config)), before, rtol=5e-2, atol=5e-2)


@torch.no_grad()
def test_a_static_cache_is_masked_where_it_is_empty():
    model = optimize(sixteen(llama()))
    found = steps_of(model, StaticCache(config=model.config, max_cache_len=20))
    torch.testing.assert_close(found, steps_of(model, DynamicCache(config=model.config)), rtol=2e-2, atol=2e-2)


def test_training_takes_the_plain_product():
    layer = Linear.of(torch.nn.Linear(8, 4).to(BF16))
    layer(torch.randn(1, 8).to(BF16)).sum().backward()
    assert layer.weight.grad.shape == (4, 8)


def test_nothing_of_it_is_saved(tmp_path):
    model = optimize(sixteen(llama()))
    model.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()


@torch.no_grad()
def decodes_alike(batch):
    """One graph decodes as eager steps do."""
    model = optimize(sixteen(llama()))
    eager, one_graph = (decoder(model, tokens=8, batch=batch, steps=2, compiled=choice) for choice in (False, True))
    for _ in range(2):
        torch.testing.assert_close(one_graph(), eager(), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_decoding_step_compiles_to_one_graph(monkeypatch, batch):
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda run, **options: compiled(run, backend="aot_eager", **options))
    decodes_alike(batch)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on a CPU needs a C++ compiler")
def test_the_loops_of_a_compiled_step_decode_alike():
    decodes_alike(batch=1)
