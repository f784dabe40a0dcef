import json

import pytest
import torch
from architectures import llama
from joined import join
from lossless import compress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from slimrank.checkpoint import write_checkpoint
from slimrank.checkpoint.account import Account
from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate import weight_bytes
from slimrank.forms import compressed_layers
from slimrank.model.load import load
from slimrank.plan import Plan
from slimrank.refine.ends import nearest
from slimrank.rounding.grid import Grid
from slimrank.run.quantize import quantize


@pytest.fixture
def write(tmp_path, tiny_tokenizer):
    def write(*forms):
        model = compress(llama(hidden_size=64, intermediate_size=96), *forms)
        layers = compressed_layers(model)
        options = {"layers": layers, "dtype": torch.float32, "tokenizer": tiny_tokenizer, "overwrite": True}
        write_checkpoint(model, tmp_path / "small", **options)
        return load(str(tmp_path / "small"))

    return write


@pytest.mark.parametrize(("bits", "group", "bound"), [(8, None, 0.02), (8, 32, 0.02), (4, None, 0.2), (3, 32, 0.4)])
@torch.no_grad()
def test_a_dense_model_is_rounded_whole(bits, group, bound, tmp_path, tiny_tokenizer):
    model, tokens = llama(hidden_size=64, intermediate_size=96, tie_word_embeddings=True), torch.arange(12)[None]
    logits = model(tokens).logits
    write_checkpoint(model, tmp_path / "dense", layers={}, dtype=torch.bfloat16, tokenizer=tiny_tokenizer)
    quantize(load(str(tmp_path / "dense")), tmp_path / "out", bits=bits, group=group)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert (loaded(tokens).logits - logits).norm() < bound * logits.norm()
    stored = load_file(tmp_path / "out/model.safetensors")
    assert {t.dtype for name, t in stored.items() if name.endswith(("whole.weight", "table.weight")) and t.numel()} <= {
        torch.int8, torch.uint8,
    }  # fmt: skip
    entries = compressed_layers(loaded)
    assert len(entries) == 15 and entries["model.embed_tokens"] == {"form": "embedding", "bits": 8}
    weight = load_file(tmp_path / "dense/model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    layer = loaded.get_submodule("model.layers.1.mlp.up_proj.whole")
    expected = nearest(weight, Grid(bits, layer.group))
    assert torch.equal(layer.numbers(), expected.numbers) and torch.equal(layer.scale.double(), expected.scale)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_the_ends_have_the_grid_that_a_budget_gives_them(bits, tmp_path, tiny_tokenizer):
    model = llama(hidden_size=64, intermediate_size=96)
    write_checkpoint(model, tmp_path / "dense", layers={}, dtype=torch.float32, tokenizer=tiny_tokenizer)
    quantize(load(str(tmp_path / "dense")), tmp_path / "out", ends=bits)
    loaded, group = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), {} if bits == 8 else {"group": 32}
    entries = compressed_layers(loaded)
    assert entries["model.embed_tokens"] == {"form": "embedding", "bits": bits, **group}
    assert entries["lm_head"] == {"form": "dense", "bits": bits, **group}
    grid = Grid(bits, group.get("group"))
    for plain, layer in (
        (model.model.embed_tokens, loaded.model.embed_tokens.table),
        (model.lm_head, loaded.lm_head.whole),
    ):
        expected = nearest(plain.weight, grid)
        assert torch.equal(layer.numbers(), expected.numbers) and torch.equal(layer.scale, expected.scale.float())


@torch.no_grad()
def test_the_ends_may_stay(tmp_path, tiny_tokenizer):
    model = llama(hidden_size=64, intermediate_size=96)
    write_checkpoint(model, tmp_path / "dense", layers={}, dtype=torch.float32, tokenizer=tiny_tokenizer)
    quantize(load(str(tmp_path / "dense")), tmp_path / "out", ends=None)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(loaded.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert len(compressed_layers(loaded)) == 14 and torch.equal(loaded.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("bits", "forms", "bound"), [(8, ("low_rank", "pivoted", "columns", "joint"), 0.1), (4, ("low_rank",), 1)]
)
@torch.no_grad()
def test_the_same_loader_reads_the_smaller_checkpoint(bits, forms, bound, write, tmp_path):
    loaded, tokens = write(*forms), torch.arange(12)[None]
    logits, size = loaded.model(tokens).logits, weight_bytes(tmp_path / "small")
    quantize(loaded, tmp_path / "out", bits=bits)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(model(tokens).logits, loaded.model(tokens).logits, rtol=0, atol=0)
    assert (model(tokens).logits - logits).abs().max() < bound
    assert weight_bytes(tmp_path / "out") < size * (0.5 if bits == 8 else 0.4)
    layer = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["layers"]
    assert layer["model.layers.0.self_attn.q_proj"] == {
        "form": "low_rank", "rank": 64, "bits": bits, **({"group": 32} if bits == 4 else {}),
    }  # fmt: skip
    dtypes = {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()}
    assert (torch.int8 if bits == 8 else torch.uint8) in dtypes
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.bfloat16).eval()
    assert (again(tokens).logits.float() - logits).abs().max() < bound + 0.2


@torch.no_grad()
def test_joined_layers_share_their_rounded_factor(tmp_path, tiny_tokenizer):
    model, tokens = join(llama(hidden_size=64, intermediate_size=96)), torch.arange(12)[None]
    logits, options = model(tokens).logits, {"dtype": torch.float32, "tokenizer": tiny_tokenizer}
    write_checkpoint(model, tmp_path / "small", layers=compressed_layers(model), **options)
    quantize(load(str(tmp_path / "small")), tmp_path / "out")
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert (rounded(tokens).logits - logits).norm() < 0.03 * logits.norm()
    stored = load_file(tmp_path / "out" / "model.safetensors")
    block = "model.layers.0.self_attn"
    assert stored[f"{block}.q_proj.pivots.weight"].dtype == torch.int8 and f"{block}.k_proj.pivots.weight" not in stored


def test_what_cannot_be_quantized_is_one_sentence(write, tmp_path):
    loaded = write("low_rank", "pivoted")
    with pytest.raises(SlimrankError, match="is pivoted, whose factors can't have 4 bits"):
        quantize(loaded, tmp_path / "out", bits=4)
    with pytest.raises(UsageError, match="--bits 5 is unknown"):
        quantize(loaded, tmp_path / "out", bits=5)
    quantize(write("low_rank"), tmp_path / "out")
    with pytest.raises(UsageError, match="has layers of few bits already"):
        quantize(load(str(tmp_path / "out")), tmp_path / "twice")
    with pytest.raises(UsageError, match="--ends 5 is unknown"):
        quantize(loaded, tmp_path / "out", ends=5)


@pytest.mark.parametrize("bits", [8, 4])
def test_trainer_refuses_what_has_no_gradients(bits, write, tmp_path):
    quantize(write("low_rank"), tmp_path / "out", bits=bits)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.is_quantized and not model.hf_quantizer.is_trainable
    with pytest.raises(ValueError, match="fine-tuning"):
        Trainer(model, TrainingArguments(tmp_path / "run", report_to=[], use_cpu=True))
    tokens = torch.arange(5)[None]
    assert model.generate(tokens, max_new_tokens=3, min_new_tokens=3, do_sample=False).shape == (1, 8)


def test_plan_account_and_card_come_along(place):
    import slimrank

    options = {"calibration": "text.txt", "samples": 8, "window": 32}
    slimrank.compress("dense", "svd-llm", keep=0.6, **options).save("small")
    quantize(load("small"), place / "out")
    before, after = (Plan.load(place / name / "slimrank/plan.json") for name in ("small", "out"))
    assert after.notes == [*before.notes, "Rounded to 8 bits (slimrank quantize)."]
    assert {name: linear.layer for name, linear in after.linears.items()} == {
        name: linear.layer | {"bits": 8} for name, linear in before.linears.items()
    }
    assert Account.load(place / "out") == Account.load(place / "small")
    assert 'from_pretrained("out")' in (place / "out/README.md").read_text()
    assert after.ends == {"model.embed_tokens": 8, "lm_head": 8}
    with pytest.raises(UsageError, match="has no refiner round"):
        slimrank.compress("dense", plan=after)
