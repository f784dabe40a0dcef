import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, gemma3_with_vision, llama
from lossless import compress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import slimrank
from slimrank.checkpoint import write_checkpoint
from slimrank.errors import SlimrankError, UsageError
from slimrank.forms import compressed_layers
from slimrank.model.load import Loaded
from slimrank.serve.export import TARGETS, export
from slimrank.serve.export.dense import multiplied_out
from slimrank.serve.export.onnx import need, write_onnx
from slimrank.serve.export.parity import TOKENS, check, torch_runner

FORMS = ("low_rank", "pivoted", "columns")


@pytest.fixture
def small(tmp_path, tiny_tokenizer) -> Path:
    """A compressed checkpoint with every form, tied embeddings and a tokenizer."""
    model = compress(llama(tie_word_embeddings=True, max_position_embeddings=128), *FORMS)
    layers = compressed_layers(model)
    write_checkpoint(model, tmp_path / "small", layers=layers, dtype=torch.float32, tokenizer=tiny_tokenizer)
    return tmp_path / "small"


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
assert "slimrank" not in sys.modules
assert model.lm_head.weight is model.model.embed_tokens.weight
AutoTokenizer.from_pretrained(sys.argv[1])
torch.save(model(torch.arange(12)[None]).logits, sys.argv[2])
"""


def test_dense_loads_where_slimrank_is_not_imported(small, tmp_path):
    parity = export(str(small), "dense", tmp_path / "out")
    assert parity.tokens == TOKENS and parity.difference <= 1e-5
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "out"), str(tmp_path / "logits")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(small)(torch.arange(12)[None]).logits
    torch.testing.assert_close(torch.load(tmp_path / "logits"), expected, rtol=1e-5, atol=1e-5)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert load_file(tmp_path / "out" / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].shape == (48, 32)


@pytest.mark.parametrize("name", ["gpt2", "opt", "qwen2"])
@torch.no_grad()
def test_multiplied_out_has_the_architectures_own_layers(name):
    dense = ARCHITECTURES[name]()
    plain = multiplied_out(compress(ARCHITECTURES[name](), *FORMS))
    for key, tensor in dense.state_dict().items():
        torch.testing.assert_close(plain.state_dict()[key], tensor, rtol=1e-4, atol=1e-4)
    assert [type(m) for m in plain.modules()] == [type(m) for m in dense.modules()]


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_runs_with_its_cache_elsewhere(to, small, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}[to])
    parity = export(str(small), to, tmp_path / "out")
    assert parity.tokens == TOKENS and parity.difference <= 1e-4
    files = {file.name for file in (tmp_path / "out").iterdir()}
    wanted = {"onnx": "model.onnx", "openvino": "openvino_model.bin"}[to]
    assert {wanted, "config.json", "tokenizer.json"} <= files and "draft" not in files


@pytest.fixture(scope="module")
def compressed_demo(tmp_path_factory) -> Path:
    """The embedded model, compressed by the default recipe."""
    out = tmp_path_factory.mktemp("demo") / "small"
    slimrank.compress("demo", keep=0.6, samples=8, window=64).save(out)
    return out


@pytest.mark.parametrize("to", ["dense", "onnx", "openvino"])
def test_the_demo_generates_the_same_64_tokens(to, compressed_demo, tmp_path):
    library = {"dense": "torch", "onnx": "onnxruntime", "openvino": "openvino"}[to]
    pytest.importorskip(library)
    parity = export(str(compressed_demo), to, tmp_path / "out", dtype="float32" if to == "dense" else None)
    assert (parity.tokens, parity.rounded) == (64, False) and parity.difference <= 1e-4


def test_a_model_that_is_no_one_graph_is_said_in_a_sentence(tmp_path, capfd):
    pytest.importorskip("onnxscript")
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    loaded = Loaded("tiny", llama(rope_scaling=rope), None, torch.float32, None)
    with pytest.raises(SlimrankError, match=r"MODEL tiny cannot be traced as one graph \(.+\): export .* --to dense"):
        write_onnx(loaded, tmp_path / "model.onnx")
    assert capfd.readouterr() == ("", "")


def test_an_export_that_computes_something_else_leaves_nothing(small, tmp_path, monkeypatch):
    def broken(loaded, folder):
        (folder / "weights").write_text("half")
        other = compress(llama(tie_word_embeddings=True, max_position_embeddings=128), *FORMS)
        other.model.norm.weight.data.mul_(1.01)
        return torch_runner(other)

    monkeypatch.setitem(TARGETS, "dense", broken)
    with pytest.raises(SlimrankError, match=r"dense export differs .* at token 0"):
        export(str(small), "dense", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_sixteen_bit_weights_are_held_to_their_rounding():
    model = llama(max_position_embeddings=128)
    rough = llama(max_position_embeddings=128).to(torch.bfloat16).float()
    loaded = Loaded("tiny", model, None, torch.bfloat16, None)
    parity = check(torch_runner(rough, rounded=True), loaded, "dense")
    assert parity.rounded and 1e-4 < parity.difference < 2e-2


def test_a_model_with_a_vision_tower_is_checked_on_text():
    model = gemma3_with_vision()
    parity = check(torch_runner(model), Loaded("tiny", model, None, torch.float32, None), "dense")
    assert (parity.tokens, parity.difference) == (TOKENS, 0.0)


def test_bad_use_is_one_sentence(small, tmp_path):
    with pytest.raises(UsageError, match="--to gguff is unknown: choose one of "):
        export(str(small), "gguff", tmp_path / "out")
    for to, dtype in (("onnx", "float32"), ("dense", "int8")):
        with pytest.raises(UsageError, match=f"--dtype {dtype} can't be: --to dense stores float32, "):
            export(str(small), to, tmp_path / "out", dtype=dtype)
    with pytest.raises(UsageError, match=r"--to onnx needs nowhere_at_all: run pip install 'slimrank\[onnx\]'"):
        need("onnx", "nowhere_at_all")
