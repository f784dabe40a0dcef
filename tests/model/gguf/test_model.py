import io
import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

import slimrank
from slimrank.checkpoint import verify
from slimrank.cli.main import app
from slimrank.errors import MissingLibrary, SlimrankError

pytest.importorskip("gguf.quants")

import sentencepiece
from gguf import GGMLQuantizationType as Kind
from tiny_gguf import TEMPLATE

IDS = torch.arange(2, 42).view(2, 20)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q8_0, Kind.F16, Kind.F32])
def test_the_weights_are_the_dequantised_tensors(written, kind):
    path, made = written(kind)
    loaded = slimrank.load(str(path))
    state = loaded.model.state_dict()
    assert state.keys() == made.keys()
    for name, expected in made.items():
        assert torch.equal(state[name], expected), name
    assert loaded.dtype == {Kind.F16: torch.float16, Kind.F32: torch.float32}.get(kind, torch.bfloat16)
    assert loaded.model.dtype == torch.float32 and loaded.directory is None and loaded.hub is None
    said = f"The model was quantised as {kind.name} in its GGUF file: its dense weights lie on that grid"
    assert [note.partition(",")[0] for note in loaded.notes] == [said] * kind.name.startswith("Q")


def test_it_computes_what_the_quantised_model_computes(written, tiny_llama, tiny_tokenizer):
    path, made = written()
    expected = tiny_llama(hidden_size=64, intermediate_size=96, vocab_size=len(tiny_tokenizer))
    expected.load_state_dict(made)
    assert torch.allclose(logits(slimrank.load(str(path)).model), logits(expected), atol=1e-5)


def test_it_saves_and_loads_as_a_usual_model(written, tiny_tokenizer, make_text, tmp_path):
    path, _ = written()
    loaded = slimrank.load(str(path))
    loaded.model.save_pretrained(tmp_path / "saved")
    loaded.tokenizer.save_pretrained(tmp_path / "saved")
    saved = "".join(file.read_text() for file in (tmp_path / "saved").glob("*config.json"))
    assert "quant" not in saved and "gguf" not in saved and str(tmp_path) not in saved
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.dtype == torch.float32 and torch.equal(logits(again), logits(loaded.model))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    text = make_text(50)
    expected = tiny_tokenizer(text, add_special_tokens=False).input_ids
    for one in (loaded.tokenizer, tokenizer):
        assert one(text, add_special_tokens=False).input_ids == expected and one.chat_template == TEMPLATE
        assert (one.bos_token_id, one.eos_token_id) == (0, 1)


def test_other_files_beside_it_are_not_its_own(written, tmp_path):
    path, made = written()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(slimrank.load(str(path)).model.lm_head.weight, made["lm_head.weight"])


def test_compressed_from_a_file_it_is_a_whole_checkpoint(written, make_text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written()
    (tmp_path / "text.txt").write_text(make_text(4000))
    calibration = ["--calibration", "text.txt", "--samples", "8", "--window", "32"]
    result = CliRunner().invoke(app, ["compress", "tiny.gguf", "--keep", "0.6", *calibration])
    assert result.exit_code == 0, result.output
    assert "note: The model was quantised as Q4_1 in its GGUF file" in result.stderr
    out = tmp_path / "tiny-slimrank-0.6"
    verify(out)
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert "huggingface.co" not in (out / "README.md").read_text()
    kept = {"tokenizer.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja"}
    assert kept <= {file.name for file in out.iterdir()}
    notes = json.loads((out / "slimrank" / "plan.json").read_text())["notes"]
    assert sum("quantised as Q4_1" in note for note in notes) == 1
    evaluated = ["evaluate", "tiny.gguf", out.name, "--text", "text.txt", "--window", "32", "--max-windows", "8"]
    result = CliRunner().invoke(app, [*evaluated, "--json", "found.json"])
    assert result.exit_code == 0, result.output
    dense, small = json.loads((tmp_path / "found.json").read_text())["models"]
    assert dense["bytes"] == 2 * dense["parameters"]["model"] and small["bytes"] < dense["bytes"]
    assert small["texts"]["text.txt"]["nats_lost"] == pytest.approx(
        small["texts"]["text.txt"]["nats"] - dense["texts"]["text.txt"]["nats"]
    )


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.F32])
def test_what_is_written_computes_what_is_in_memory(written, make_text, tmp_path, kind):
    path, _ = written(kind)
    (tmp_path / "text.txt").write_text(make_text(4000))
    options = {"keep": 0.6, "calibration": str(tmp_path / "text.txt"), "samples": 8, "window": 32}
    streamed = slimrank.compress(path, "svd-llm", out=tmp_path / "out", **options)
    in_memory = slimrank.compress(path, "svd-llm", **options)
    assert torch.allclose(logits(streamed.model), logits(in_memory.model), atol=1e-5)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert again.dtype == (torch.bfloat16 if kind == Kind.Q4_1 else torch.float32)
    with torch.no_grad():
        for parameter in in_memory.model.parameters():
            parameter.copy_(parameter.to(again.dtype))
    for parameter in again.parameters():  # not the rotary frequencies, which are float32 already
        parameter.data = parameter.float()
    assert torch.allclose(logits(again), logits(in_memory.model), atol=1e-5)


def test_an_unknown_architecture_is_refused(written):
    path, _ = written(architecture="llamoid")
    with pytest.raises(SlimrankError, match=r"architecture llamoid and holds Q4_1, of which transformers .* no"):
        slimrank.load(str(path))


def test_a_model_without_one_of_its_tensors_is_refused(written):
    path, _ = written(leave_out="blk.1.ffn_up")
    with pytest.raises(SlimrankError, match=r"it lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        slimrank.load(str(path))


def test_scaled_rotary_frequencies_are_refused(written):
    path, _ = written(extra={"rope_freqs.weight": np.ones(8, dtype=np.float32)})
    with pytest.raises(SlimrankError, match=r"scales its rotary frequencies by rope_freqs\.weight"):
        slimrank.load(str(path))


def test_without_the_library_it_says_what_to_install(written, monkeypatch):
    path, _ = written()
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(MissingLibrary, match=r"needs sentencepiece: run pip install 'slimrank\[gguf\]'\."):
        slimrank.load(str(path))


def test_a_sentencepiece_vocabulary_is_read(written, make_text):
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(make_text(2000).splitlines()), model_writer=trained, vocab_size=360, model_type="bpe",
        byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    expected = sentencepiece.SentencePieceProcessor(model_proto=trained.getvalue())
    path, _ = written(tokenizer=expected)
    loaded = slimrank.load(str(path))
    text = "the blue river walked \u00e9 under 12 stones"
    assert loaded.tokenizer(text, add_special_tokens=False).input_ids == expected.encode(text)
    assert loaded.tokenizer(text).input_ids == [expected.bos_id(), *expected.encode(text)]
    assert loaded.tokenizer.decode(expected.encode(text)) == text
