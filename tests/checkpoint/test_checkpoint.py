import hashlib
import json
from pathlib import Path

import pytest
import torch
from architectures import llama
from lossless import compress
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from slimrank.checkpoint import verify, write_checkpoint
from slimrank.checkpoint.config import finish_config
from slimrank.errors import SlimrankError, UsageError
from slimrank.forms import compressed_layers

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return compress(llama())


@pytest.fixture
def write(model, tmp_path):
    def write(**options) -> Path:
        options = {"layers": compressed_layers(model), "dtype": torch.float32, **options}
        write_checkpoint(model, tmp_path / "out", **options)
        return tmp_path / "out"

    return write


@pytest.fixture
def source(tmp_path) -> Path:
    """A dense model's folder with everything that can lie in one."""
    files = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": '{"a": 1}',
        "tokenizer.model": "sentencepiece",
        "vocab.txt": "a",
        "chat_template.jinja": "{{ messages }}",
        "additional_chat_templates/tool.jinja": "{{ tools }}",
        "generation_config.json": '{"temperature": 0.6, "top_p": 0.9}',
        "LICENSE": "licence",
        "config.json": '{"model_type": "llama", "old_key": 5, "vocab_size": 1, "torch_dtype": "x"}',
        "README.md": "dense card",
        "model.safetensors.index.json": "{}",
        "pytorch_model.bin": "pickle",
    }
    for name, text in files.items():
        path = tmp_path / "source" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    save_file({}, tmp_path / "source" / "model.safetensors")
    return tmp_path / "source"


def test_the_companions_are_copied_and_nothing_else(write, source):
    out = write(source=source, extras={"README.md": "our card", "slimrank/plan.json": "{}"})
    found = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    kept = {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.txt", "chat_template.jinja", "LICENSE"}
    kept |= {"additional_chat_templates/tool.jinja"}
    ours = {
        "generation_config.json",
        "config.json",
        "model.safetensors",
        "README.md",
        "slimrank/plan.json",
        "slimrank/checksums.json",
    }
    assert found == kept | ours
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in kept)
    assert (out / "README.md").read_text() == "our card"


def test_config_keeps_the_keys_that_only_older_transformers_read(write, source):
    written = json.loads((write() / "config.json").read_text())
    assert written["rope_theta"] == 500000.0
    kept = json.loads((write(source=source, overwrite=True) / "config.json").read_text())
    assert kept == {**written, "old_key": 5}
    (source / "config.json").write_text('{"model_type": "other", "old_key": 5}')
    assert json.loads((write(source=source, overwrite=True) / "config.json").read_text()) == written


@pytest.mark.parametrize("rope", ["default", "linear"])
def test_older_rope_keys_say_the_same(rope, tmp_path):
    rotary = {"rope_type": rope, "rope_theta": 500000.0} | ({"factor": 2.0} if rope == "linear" else {})
    config = {"model_type": "llama", "rope_parameters": rotary}
    (tmp_path / "config.json").write_text(json.dumps(config))
    finish_config(tmp_path / "config.json", torch.bfloat16, None)
    older = {"rope_theta": 500000.0} | (
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}} if rope == "linear" else {}
    )
    assert json.loads((tmp_path / "config.json").read_text()) == {**config, **older, "dtype": "bfloat16"}


def test_a_generation_config_that_transformers_refuses_to_save_is_kept(model, write, source):
    refused, before = GenerationConfig.from_pretrained(source), model.generation_config
    model.generation_config = refused
    try:
        out = write(source=source)
        assert model.generation_config is refused
    finally:
        model.generation_config = before
    name = "generation_config.json"
    assert (out / name).read_bytes() == (source / name).read_bytes()
    own = json.loads((write(source=source, overwrite=True) / name).read_text())
    assert "temperature" not in own and own["bos_token_id"] == 1  # what is in memory wins


class Tokenizer:
    def save_pretrained(self, folder):
        (folder / "tokenizer_config.json").write_text("given")


def test_the_tokenizer_is_saved_where_the_source_has_none(write):
    assert (write(tokenizer=Tokenizer()) / "tokenizer_config.json").read_text() == "given"


def test_a_tokenizer_is_copied_to_the_byte_unless_it_was_changed_in_memory(write, tmp_path, tiny_tokenizer):
    source = tmp_path / "source"
    tiny_tokenizer.chat_template = "{{ messages }}"
    tiny_tokenizer.save_pretrained(source)
    config = source / "tokenizer_config.json"
    config.write_text(config.read_text() + "\n\n")
    tokenizer = AutoTokenizer.from_pretrained(source)
    assert (write(source=source, tokenizer=tokenizer) / config.name).read_bytes() == config.read_bytes()
    tokenizer.pad_token, tokenizer.chat_template = "</s>", None
    again = AutoTokenizer.from_pretrained(write(source=source, tokenizer=tokenizer, overwrite=True))
    assert again.pad_token == "</s>" and again.chat_template is None


def test_checksums_are_those_of_the_files(write):
    out = write(max_shard_size="30KB")
    checksums = json.loads((out / "slimrank" / "checksums.json").read_text())
    shards = sorted(path.name for path in out.glob("*.safetensors"))
    assert verify(out) == sorted(checksums) == shards and len(shards) > 2
    for name, entry in checksums.items():
        assert entry == {
            "bytes": (out / name).stat().st_size,
            "sha256": hashlib.sha256((out / name).read_bytes()).hexdigest(),
        }


def test_a_damaged_weight_file_is_named(write):
    out = write()
    weights = out / "model.safetensors"
    good = weights.read_bytes()

    weights.write_bytes(good[:-1])
    with pytest.raises(SlimrankError, match=rf"model.safetensors has {len(good) - 1:,} bytes instead of {len(good):,}"):
        verify(out)
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(SlimrankError, match=r"model.safetensors was changed"):
        verify(out)
    weights.unlink()
    with pytest.raises(SlimrankError, match=r"model.safetensors is missing"):
        verify(out)
    (out / "slimrank" / "checksums.json").write_text('{"model.safetensors": 3}')
    with pytest.raises(SlimrankError, match=r"checksums.json is damaged"):
        verify(out)


def test_a_folder_without_checksums_has_nothing_to_verify(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert verify(tmp_path) == []


def test_overwrite_replaces_the_whole_folder(write):
    out = write(extras={"stale": "x"})
    with pytest.raises(UsageError, match="not empty"):
        write()
    write(overwrite=True)
    assert not (out / "stale").exists() and verify(out) == ["model.safetensors"]


def test_a_failed_write_leaves_the_old_result(model, write, monkeypatch):
    out = write(extras={"slimrank/plan.json": "good"})

    def fill(folder, **options):
        (Path(folder) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(model, "save_pretrained", fill, raising=False)
    stored = sum(parameter.nbytes for parameter in model.parameters())
    with pytest.raises(SlimrankError, match=f"out needs {stored:,} bytes"):
        write(overwrite=True)
    assert verify(out) == ["model.safetensors"] and (out / "slimrank" / "plan.json").read_text() == "good"
    assert list(out.parent.iterdir()) == [out]


def test_layers_must_be_what_the_model_holds(model, write, tmp_path):
    wrong = {**compressed_layers(model), "model.layers.0.mlp.up_proj": {"form": "low_rank", "rank": 3}}
    for layers in ({}, wrong, {**compressed_layers(model), "lm_head": {"form": "pivoted", "rank": 1}}):
        with pytest.raises(SlimrankError, match=r"The layer \S+ is .* in the model"):
            write(layers=layers)
    assert list(tmp_path.iterdir()) == []


def test_extras_stay_inside(write, tmp_path):
    with pytest.raises(SlimrankError, match=r"\.\./evil lies outside"):
        write(extras={"../evil": "x"})
    assert list(tmp_path.iterdir()) == []


def test_parts_kept_in_float32_stay_so(tmp_path):
    model = compress(llama()).to(torch.bfloat16)
    model.model.norm.float()
    write_checkpoint(model, tmp_path / "out", layers=compressed_layers(model), dtype=torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(loaded.model.norm.weight, model.model.norm.weight)
