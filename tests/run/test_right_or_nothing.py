"""Before the work a model is right or refused; after it what is written is right or nothing is."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from slimrank import compress, load
from slimrank.errors import SlimrankError
from slimrank.forms import compressed_layers

QUICK = {"keep": 0.6, "calibration": "text.txt", "samples": 8, "window": 32}
IDS = torch.arange(20).view(2, 10)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def test_a_config_that_transformers_refuses_to_save_is_found_before_the_work(place, monkeypatch):
    change(place / "dense" / "config.json", output_attentions=True)
    read = []
    monkeypatch.setattr("slimrank.run.job.read_windows", lambda *args: read.append(args))
    with pytest.raises(SlimrankError, match=r"transformers cannot save this model: .*output_attentions"):
        compress("dense", "svd-llm", **QUICK)
    assert read == []


@pytest.mark.parametrize("out", [None, "out"])
def test_a_checkpoint_that_loads_to_other_logits_is_not_put_in_place(place, monkeypatch, out):
    def spoiled(path, text):
        path.write_text(text)
        if path.name == "config.json":
            change(path, rms_norm_eps=5.0)

    monkeypatch.setattr("slimrank.checkpoint.config.write_text", spoiled)
    with pytest.raises(SlimrankError, match="loads to other logits than the run computed"):
        compress("dense", "svd-llm", **QUICK, out=out).save("out", overwrite=True)
    assert not (place / "out").exists()


def test_the_model_describes_itself_whoever_saves_it(place):
    model = compress("dense", "svd-llm", **QUICK).model
    model.save_pretrained("saved")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained("saved")), logits(model))
    dropped = copy.deepcopy(AutoModelForCausalLM.from_pretrained("saved"))
    dropped.model.layers = dropped.model.layers[:1]
    dropped.config.num_hidden_layers = 1
    dropped.save_pretrained("dropped")
    again = AutoModelForCausalLM.from_pretrained("dropped")
    assert torch.equal(logits(again), logits(dropped)) and len(compressed_layers(again)) == 7
    assert len(json.loads((place / "saved" / "config.json").read_text())["quantization_config"]["layers"]) == 14


@pytest.mark.parametrize("out", [None, "out"])
def test_tensors_that_are_not_compressed_keep_their_bits_and_dtype(place, out):
    path = place / "dense" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] = torch.linspace(0.9, 1.1, 32) + 1e-5
    save_file(tensors, path, {"format": "pt"})
    result = compress("dense", "svd-llm", **QUICK, out=out)
    if out is None:
        result.save("out")
    found = load_file(place / "out" / "model.safetensors")
    assert torch.equal(found["model.norm.weight"], tensors["model.norm.weight"])
    assert found["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert found["model.layers.0.mlp.up_proj.up.weight"].dtype == torch.bfloat16


def test_what_is_changed_in_memory_is_what_is_saved(place):
    change(place / "dense" / "config.json", pad_token_id=3)
    loaded = load("dense")
    loaded.model.config.pad_token_id = None
    loaded.model.config.initializer_range = 0.02  # the class's default, which config.json leaves out
    loaded.model.generation_config.max_new_tokens = 7
    loaded.tokenizer.pad_token = "</s>"
    loaded.tokenizer.chat_template = "{{ messages }}"
    compress(loaded, "svd-llm", **QUICK).save("out")
    model, tokenizer = AutoModelForCausalLM.from_pretrained("out"), AutoTokenizer.from_pretrained("out")
    assert model.config.pad_token_id is None and model.config.initializer_range == 0.02
    assert model.generation_config.max_new_tokens == 7
    assert (tokenizer.pad_token, tokenizer.chat_template) == ("</s>", "{{ messages }}")


def test_a_config_in_memory_that_is_not_the_modules_is_found(place):
    loaded = load("dense")
    loaded.model.config.rms_norm_eps = 1e-4
    with pytest.raises(SlimrankError, match=r"other logits than the run computed, by 0\.00.*its config was changed"):
        compress(loaded, "svd-llm", **QUICK).save("out")


def test_numbers_that_the_stored_dtype_cannot_hold_are_refused(place):
    loaded = load("dense")
    loaded.dtype = torch.float16
    result = compress(loaded, "svd-llm", **QUICK)
    with torch.no_grad():
        result.model.model.layers[0].mlp.up_proj.up.weight[0, 0] = 1e6
    with pytest.raises(SlimrankError, match=r"layers.0.mlp.up_proj.up.weight holds 1e\+06, which float16 can't hold"):
        result.save("out")
    assert not (place / "out").exists()
