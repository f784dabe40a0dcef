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
from slimrank.forms.quantized import dequantize
from slimrank.model.load import load
from slimrank.plan import Plan
from slimrank.run.quantize import quantize, rounded


@pytest.fixture
def write(tmp_path, tiny_tokenizer):
    def write(*forms):
        model = compress(llama(hidden_size=64, intermediate_size=96), *forms)
        layers = compressed_layers(model)
        options = {"layers": layers, "dtype": torch.float32, "tokenizer": tiny_tokenizer, "overwrite": True}
        write_checkpoint(model, tmp_path / "small", **options)
        return load(str(tmp_path / "small"))

    return write


@pytest.mark.parametrize("group", [None, 16, 32])
@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_rounds_to_the_nearest_number_of_the_largest_ones_scale(bits, group):
    weight = torch.randn(7, 40, generator=torch.Generator().manual_seed(0))
    numbers, scale = rounded(weight, bits, group)
    largest = torch.stack([block.abs().amax(1) for block in weight.split(group or 40, dim=1)], dim=1)
    torch.testing.assert_close(scale, largest / (2**bits - 1) * 2, rtol=1e-5, atol=0)
    wide = scale.repeat_interleave(group or 40, dim=1)[:, :40]
    assert (dequantize(numbers, scale, group) == numbers * wide).all()
    assert ((numbers * wide - weight).abs() <= 0.5001 * wide).all()


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
    with pytest.raises(UsageError, match="has quantized factors already"):
        quantize(load(str(tmp_path / "out")), tmp_path / "twice")
    with pytest.raises(UsageError, match="has no compressed layers"):
        quantize(load("demo"), tmp_path / "dense")


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
    assert after.notes == [*before.notes, "The factors are quantized to 8 bits (slimrank quantize)."]
    assert {name: linear.layer for name, linear in after.linears.items()} == {
        name: linear.layer | {"bits": 8} for name, linear in before.linears.items()
    }
    assert Account.load(place / "out") == Account.load(place / "small")
    assert 'from_pretrained("out")' in (place / "out/README.md").read_text()
    again = slimrank.compress("dense", plan=after)
    assert again.plan.linears == before.linears
