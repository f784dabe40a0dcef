"""What was written is what was computed, tensor by tensor, or it is not put in place."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slimrank import compress, load
from slimrank.checkpoint.manifest import manifest
from slimrank.errors import SlimrankError
from slimrank.run.trial import rounded

QUICK = {"keep": 0.6, "calibration": "text.txt", "samples": 8, "window": 32}
UP, DOWN = (f"model.layers.1.mlp.up_proj.{factor}.weight" for factor in ("up", "down"))
IDS = torch.arange(20).view(2, 10)


def swapped(tensors):
    other = "model.layers.0.mlp.up_proj.up.weight"
    tensors[UP], tensors[other] = tensors[other], tensors[UP]


def zeroed(tensors):
    tensors[DOWN][0] = 0


def one_bit(tensors):
    tensors[UP][0, 0] = torch.nextafter(tensors[UP][0, 0].float() * 1.01, torch.tensor(0.0)).to(tensors[UP].dtype)


def norm_lost(tensors):
    tensors["model.norm.weight"].fill_(1)


def embedding_row(tensors):
    tensors["model.embed_tokens.weight"][7] *= 1.01


def removed(tensors):
    del tensors["model.layers.0.input_layernorm.weight"]


def doubled(tensors):
    tensors["model.layers.7.input_layernorm.weight"] = tensors["model.norm.weight"].clone()


DAMAGES = [swapped, zeroed, one_bit, norm_lost, embedding_row, removed, doubled]


@pytest.fixture
def spoil(place, monkeypatch):
    """spoil(damage): the written weights, stored in bfloat16, are damaged before their checksums are taken."""
    path = place / "dense" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"] += 0.1
    save_file(tensors, path, {"format": "pt"})

    def begin(damage):
        def spoiled(folder):
            written = load_file(folder / "model.safetensors")
            damage(written)
            save_file(written, folder / "model.safetensors", {"format": "pt"})
            return manifest(folder)

        monkeypatch.setattr("slimrank.checkpoint.write.manifest", spoiled)

    return begin


@pytest.mark.parametrize("out", [None, "out"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_tensor_in_the_files_is_found(place, spoil, damage, dtype, out):
    spoil(damage)
    with pytest.raises(SlimrankError, match=r"is not what the run computed|does not load") as error:
        compress("dense", "svd-llm", **QUICK, dtype=dtype, out=out).save("out")
    assert not (place / "out").exists() and "\n" not in str(error.value)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_wrong_tensor_is_found_a_block_at_a_time(place, spoil, damage, monkeypatch):
    monkeypatch.setattr("slimrank.run.trial.load", lambda name, **options: load(name, **options | {"room": 0}))
    spoil(damage)
    with pytest.raises(SlimrankError, match=r"is not what the run computed|does not load"):
        compress("dense", "svd-llm", **QUICK, out="out")
    assert not (place / "out").exists()


def test_the_computed_model_is_as_it_was(place):
    """Its own tensors are in their places again, tied ones still tied."""
    loaded = load("demo")
    model = compress(loaded, "svd-llm", keep=0.8, samples=4, window=64)
    before = dict(model.model.named_parameters())
    values = {name: parameter.clone() for name, parameter in before.items()}
    model.save("out")
    after = dict(model.model.named_parameters())
    assert before.keys() == after.keys() and all(after[name] is before[name] for name in before)
    assert all(torch.equal(values[name], after[name]) for name in values)
    assert model.model.get_input_embeddings().weight is model.model.get_output_embeddings().weight


def test_what_is_rounded_is_equal_and_nothing_else():
    computed = torch.randn(300, 7, generator=torch.Generator().manual_seed(0))
    kinds = {torch.bfloat16}
    assert rounded(computed, computed.clone(), kinds) and rounded(computed, computed.bfloat16().float(), kinds)
    assert not rounded(computed, computed.half().float(), kinds) and not rounded(computed, computed.T, kinds)
    mixed = torch.cat([computed[:1], computed[1:].bfloat16().float()])
    assert not rounded(computed, mixed, kinds)
    assert rounded(torch.tensor(3), torch.tensor(3), kinds) and not rounded(torch.tensor(3), torch.tensor(4), kinds)


def test_the_model_of_a_run_on_disk_can_be_used(place):
    result = compress("dense", "svd-llm", **QUICK, out="out")
    loaded = AutoModelForCausalLM.from_pretrained("out", dtype=torch.float32).eval()
    assert torch.equal(result.model(IDS).logits, loaded(IDS).logits) and result.model is result.model
    result.save("again")
    files = [load_file(place / name / "model.safetensors") for name in ("out", "again")]
    assert files[0].keys() == files[1].keys() and all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    plan = compress("dense", "svd-llm", **QUICK, plan_only=True, out="plan.json")
    dense = AutoModelForCausalLM.from_pretrained("dense", dtype=torch.float32).eval()
    assert torch.equal(plan.model(IDS).logits, dense(IDS).logits)
