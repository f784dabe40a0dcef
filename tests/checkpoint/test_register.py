import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, llama
from lossless import compress, rounded
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

from slimrank.errors import SlimrankError
from slimrank.forms import compressed_layers
from slimrank.forms.low_rank import LowRank
from slimrank.forms.pivoted import Pivoted


def load(path, **options):
    return AutoModelForCausalLM.from_pretrained(path, **options).eval()


@torch.no_grad()
def gap(one, other, tokens):
    """The largest logit difference."""
    return (one(tokens).logits - other(tokens).logits).abs().max().item()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loads_as_in_memory_and_again_after_save_pretrained(name, write, tokens, tmp_path):
    dense = ARCHITECTURES[name]()
    model = compress(ARCHITECTURES[name](), "low_rank", "pivoted")
    assert gap(dense, model, tokens) < 1e-4  # an exact factorisation is the identity

    loaded, report = AutoModelForCausalLM.from_pretrained(write(model), output_loading_info=True)
    assert not any(report.values()), report  # no key is missing, unexpected or of another size
    assert compressed_layers(loaded) == compressed_layers(model) != {}
    assert gap(model, loaded, tokens) == 0.0

    loaded.save_pretrained(tmp_path / "again")
    assert gap(model, load(tmp_path / "again"), tokens) == 0.0


@pytest.mark.parametrize("form", ["low_rank", "pivoted"])
def test_every_layer_in_one_form(form, write, tokens):
    model = compress(llama(), form)
    loaded = load(write(model))
    assert {type(module) for module in loaded.modules()} & {LowRank, Pivoted} == {
        type(model.model.layers[0].mlp.up_proj)
    }
    assert gap(model, loaded, tokens) == 0.0


def test_config_keeps_the_architecture_and_names_the_layers(write):
    model = compress(llama())
    config = json.loads((write(model, dtype=torch.bfloat16) / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == "bfloat16"
    assert config["quantization_config"]["version"] == 1
    assert config["quantization_config"]["layers"]["model.layers.1.mlp.down_proj"] == {"form": "low_rank", "rank": 32}


def test_in_memory_model_saves_itself_once_written(write, tokens, tmp_path):
    model = compress(llama(tie_word_embeddings=True), "pivoted")
    write(model)
    model.save_pretrained(tmp_path / "own")
    assert gap(model, load(tmp_path / "own"), tokens) == 0.0


@pytest.mark.parametrize("tied", [False, True])
def test_written_in_bfloat16_from_float32(tied, write, tokens):
    model = compress(llama(tie_word_embeddings=tied), "low_rank", "pivoted")
    out = write(model, dtype=torch.bfloat16)
    loaded = load(out, dtype="auto")
    assert model.dtype == torch.float32 and loaded.dtype == torch.bfloat16
    stored = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16, torch.uint8}
    assert ("lm_head.weight" in stored) is not tied
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(loaded.get_parameter(name), parameter.bfloat16(), rtol=0, atol=0)
    assert gap(model, load(out, dtype=torch.float32), tokens) < 0.05


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_shards_and_device_map(device_map, write, tokens):
    model = compress(llama(tie_word_embeddings=True), "low_rank", "pivoted")
    out = write(model, max_shard_size="20KB")
    assert len(list(out.glob("model-*.safetensors"))) > 3
    loaded = load(out, device_map=device_map)
    assert gap(model, loaded, tokens) == 0.0
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_model_without_its_head(write, tokens):
    model = compress(llama())
    base = AutoModel.from_pretrained(write(model)).eval()
    with torch.no_grad():
        assert torch.equal(base(tokens)[0], model.model(tokens)[0])


def test_generates_the_same(write, tokens):
    model = compress(llama(), "low_rank", "pivoted")
    options = {"max_new_tokens": 8, "do_sample": False}
    assert torch.equal(load(write(model)).generate(tokens, **options), model.generate(tokens, **options))


def test_changes_dtype_like_any_model(write, tokens):
    loaded = load(write(compress(llama(), "low_rank", "pivoted")))
    full = loaded(tokens).logits
    for change in (lambda m: m.to(torch.bfloat16), lambda m: m.float(), lambda m: m.half()):
        logits = change(loaded)(tokens).logits.float()
        assert (logits - full).abs().max() < 0.1 and loaded.model.layers[0].mlp.up_proj.weight.dtype == loaded.dtype


def test_compiles_to_one_graph(write, tokens):
    loaded = load(write(compress(llama(num_hidden_layers=1), "low_rank", "pivoted")))
    compiled = torch.compile(loaded, fullgraph=True, backend="aot_eager")
    assert gap(loaded, compiled, tokens) < 1e-5


def test_trains_every_factor(write, tokens, tmp_path):
    loaded = load(write(compress(llama(), "low_rank", "pivoted")))
    before = {name: parameter.detach().clone() for name, parameter in loaded.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    options = TrainingArguments(tmp_path / "run", max_steps=1, report_to=[], use_cpu=True, save_strategy="no")
    Trainer(loaded, options, train_dataset=rows).train()
    still = [name for name, parameter in loaded.named_parameters() if torch.equal(parameter, before[name])]
    assert still == []


@pytest.mark.parametrize("targets", ["all-linear", r".*\.(down|up|pivots|others)", ["q_proj.down", "q_proj.up"]])
def test_lora_trains_and_merges(targets, write, tokens, tmp_path):
    peft = pytest.importorskip("peft")
    loaded = load(write(compress(llama(), "low_rank", "pivoted")))
    torch.manual_seed(0)
    adapted = peft.get_peft_model(loaded, peft.LoraConfig(target_modules=targets, r=2, task_type="CAUSAL_LM"))
    optimiser = torch.optim.SGD(adapted.parameters(), lr=0.5)
    first = adapted(tokens, labels=tokens).loss
    first.backward()
    optimiser.step()
    adapted.eval()
    trained = adapted(tokens, labels=tokens)
    assert trained.loss < first
    merged = adapted.merge_and_unload()
    assert (merged(tokens).logits - trained.logits).abs().max() < 1e-5
    merged.save_pretrained(tmp_path / "merged")
    assert gap(merged, load(tmp_path / "merged"), tokens) == 0.0


def linear_names(model):
    """The list that docs/serving.md tells PEFT's users to give for mixtures of experts."""
    head = model.get_output_embeddings()
    return [name for name, one in model.named_modules() if isinstance(one, nn.Linear) and one is not head]


@pytest.mark.parametrize(("name", "listed"), [("llama", False), ("llama", True), ("mixtral", True)])
def test_lora_takes_linears_that_are_dense_in_one_block_and_compressed_in_another(name, listed):
    peft = pytest.importorskip("peft")
    model = ARCHITECTURES[name]()
    dense = {
        f"model.layers.0.self_attn.{one}": model.model.layers[0].self_attn.get_submodule(one)
        for one in ("q_proj", "o_proj")
    }
    compress(model, "low_rank", "pivoted")
    for path, linear in dense.items():
        model.set_submodule(path, linear)
    names = linear_names(model)
    targets = names if listed else "all-linear"
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=targets, r=2, task_type="CAUSAL_LM"))
    found = {
        key.removeprefix("base_model.model.").partition(".lora_A")[0] for key in adapted.state_dict() if "lora_A" in key
    }
    assert found == set(names) and set(dense) < found


def test_lora_on_the_form_itself_is_refused(write):
    peft = pytest.importorskip("peft")
    with pytest.raises(ValueError, match="not supported"):
        peft.get_peft_model(compress(llama()), peft.LoraConfig(target_modules=["q_proj"]))


PLAIN = """
import sys
from transformers import AutoModelForCausalLM
for path in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(path)
    except RuntimeError as error:
        assert "mismatch" in str(error), error
    else:
        sys.exit(f"{path} loaded without slimrank")
assert "slimrank" not in sys.modules
"""


def test_plain_transformers_fails_loudly(write, tmp_path):
    paths = []
    for name in ("llama", "gpt2", "gpt-neox"):
        written = write(compress(ARCHITECTURES[name](), "low_rank", "pivoted"), name)
        load(written).save_pretrained(tmp_path / f"{name}-again")
        paths += [written, tmp_path / f"{name}-again"]
    paths.append(write(rounded(llama(), 4, 32, "dense"), "rounded"))
    run = subprocess.run([sys.executable, "-c", PLAIN, *map(str, paths)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_nothing_compressed_is_a_plain_checkpoint(write, tokens):
    model = llama()
    out = write(model)
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert gap(model, load(out), tokens) == 0.0


def change(config, key, value):
    *path, last = key.split("/")
    for step in path:
        config = config[step]
    config[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", 2, "version 2 .* update slimrank"),
        ("layers/model.layers.0.mlp.up_proj/form", "quantum", "mlp.up_proj has the unknown form 'quantum'"),
        ("layers/model.layers.0.mlp.up_proj/rank", 0, "mlp.up_proj has the rank 0"),
        ("layers/model.layers.7.mlp.up_proj", {"form": "low_rank", "rank": 2}, "layers.7.mlp.up_proj, which Llama"),
        ("layers", [], "quantization_config.layers"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_sentence(key, value, message, write, tmp_path):
    path: Path = write(compress(llama())) / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"], key, value)
    path.write_text(json.dumps(config))
    with pytest.raises(SlimrankError, match=message):
        load(path.parent)
    shutil.rmtree(path.parent)
