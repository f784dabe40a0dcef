"""A form from outside the package: one class and one line in the table serve it everywhere."""

import json

import pytest
import torch
from architectures import llama
from lossless import compress, factors
from own_methods import Scaled
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from slimrank.checkpoint import write_checkpoint
from slimrank.errors import SlimrankError
from slimrank.forms import FORMS, compressed_layers, form_of
from slimrank.forms.linear import is_linear, weight_of
from slimrank.serve.export import export
from slimrank.serve.optimize import optimize
from slimrank.serve.shards import Dense, FusedParts


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    """The line in the table."""
    monkeypatch.setitem(FORMS, Scaled.form, Scaled)


def layer(out: int = 16, inp: int = 12, rank: int = 5, bias: bool = True) -> Scaled:
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(out, rank, generator=generator), torch.randn(rank, inp, generator=generator)
    return Scaled.from_low_rank(left, right, torch.randn(out, generator=generator) if bias else None)


def scaled(model):
    """Every linear of the blocks in the form, without loss."""
    head = model.get_output_embeddings()
    for name, dense in [(n, m) for n, m in model.named_modules() if is_linear(m) and m is not head]:
        model.set_submodule(name, Scaled.from_low_rank(*factors(weight_of(dense)), dense.bias))
    return model


def test_its_entry_builds_it_again():
    module, dense = layer(), nn.Linear(12, 16)
    assert module.entry() == {"form": "scaled", "rank": 5}
    shell = form_of("a", module.entry()).shell(dense, module.entry())
    shell.load_state_dict(module.state_dict())
    x = torch.randn(3, 12)
    assert torch.equal(shell(x), module(x))
    expected = nn.functional.linear(x, module.dense_weight().float(), module.dense_bias())
    torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_is_saved_loaded_made_faster_and_exported(tmp_path, tiny_tokenizer):
    model, tokens = llama(max_position_embeddings=128), torch.arange(3, 20)[None]
    logits = model(tokens).logits
    layers = compressed_layers(scaled(model))
    assert len(layers) == 14 and {entry["form"] for entry in layers.values()} == {"scaled"}
    write_checkpoint(model, tmp_path / "small", layers=layers, dtype=torch.float32, tokenizer=tiny_tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    assert compressed_layers(loaded) == layers
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    torch.testing.assert_close(loaded(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(optimize(loaded)(tokens).logits, logits, rtol=1e-4, atol=1e-4)
    assert export(str(tmp_path / "small"), "dense", tmp_path / "dense").difference <= 1e-4
    config = json.loads((tmp_path / "dense" / "config.json").read_text())
    assert "quantization_config" not in config
    weight = load_file(tmp_path / "dense" / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    form = model.get_submodule("model.layers.1.mlp.up_proj")
    torch.testing.assert_close(weight, form.dense_weight().float(), rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_stands_beside_the_forms_of_the_package():
    model, tokens = llama(), torch.arange(3, 20)[None]
    logits = model(tokens).logits
    assert {entry["form"] for entry in compressed_layers(compress(model, *FORMS)).values()} == FORMS.keys()
    torch.testing.assert_close(optimize(model)(tokens).logits, logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_its_factors_have_eight_bits_and_the_rest_stays():
    module = layer()
    entry = module.entry() | {"bits": 8}
    shell = form_of("a", entry).shell(nn.Linear(12, 16), entry)
    assert shell.down.weight.dtype == shell.up.weight.dtype == torch.int8 and shell.between.dtype == torch.float32
    stored = shell.present_factors()
    for name, factor in module.present_factors().items():
        scale = factor.weight.abs().amax(1, keepdim=True) / 127
        stored[name].scale.copy_(scale)
        stored[name].weight.copy_((factor.weight / scale).round())
    shell.between.copy_(module.between)
    shell.up.bias.copy_(module.up.bias)
    x = torch.randn(3, 12)
    assert (shell(x) - module(x)).norm() < 0.02 * module(x).norm()
    read = Scaled.from_stored("a", 12, entry, {k: t for k, t in shell.state_dict().items() if k != "up.bias"})
    assert torch.equal(read.dense_weight(), shell.dense_weight())


def test_bits_that_it_refuses_are_one_sentence():
    with pytest.raises(
        SlimrankError, match=r"a\.b is scaled, whose factors can't have 4 bits: it is a toy; take 8 bits"
    ):
        form_of("a.b", {"form": "scaled", "rank": 2, "bits": 4})


@torch.no_grad()
def test_two_devices_compute_the_layer_between_them():
    module, other, x = layer(bias=False), nn.Linear(12, 6, bias=False), torch.randn(3, 12)
    read = Scaled.from_stored("a", 12, module.entry(), {k: t for k, t in module.state_dict().items() if t.numel()})
    everything, cpu = torch.arange(12), torch.device("cpu")
    expected = torch.cat([module(x), other(x)], -1)

    def fused(rows: Tensor, others: Tensor, columns: Tensor) -> Tensor:
        shards = {"a": read.shard(rows, columns), "b": Dense(other.weight).shard(others, columns)}
        return FusedParts(shards, cpu, torch.float32)(x[:, columns])

    by_rows = [fused(rows, others, everything).split([8, 3], -1) for rows, others in zip(
        torch.arange(16).split(8), torch.arange(6).split(3), strict=True
    )]  # fmt: skip
    torch.testing.assert_close(
        torch.cat([part for parts in zip(*by_rows, strict=True) for part in parts], -1), expected, rtol=1e-5, atol=1e-5
    )
    by_columns = [fused(torch.arange(16), torch.arange(6), columns) for columns in everything.split(6)]
    torch.testing.assert_close(sum(by_columns), expected, rtol=1e-5, atol=1e-5)
