import json

import pytest
import torch
from safetensors.torch import save_file

from slimrank import load
from slimrank.errors import SlimrankError, UsageError
from slimrank.model.decoder import Decoder
from slimrank.store.source import Source, weight_files

IDS = torch.arange(20).view(2, 10)


def logits(loaded):
    return Decoder(loaded.model, loaded.weights).logits(IDS)


@pytest.fixture
def dense(tiny_llama, tiny_tokenizer, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


def test_the_single_file_wins_over_an_older_index_as_in_transformers(dense, tiny_llama):
    tiny_llama(seed=1).save_pretrained(dense / "old", max_shard_size="30KB")
    for file in (dense / "old").glob("model*"):
        file.rename(dense / file.name)
    assert [file.name for file in weight_files(dense)] == ["model.safetensors"]
    expected = tiny_llama()(input_ids=IDS).logits.detach()
    for room in (None, 2**30):
        torch.testing.assert_close(logits(load(str(dense), room=room)), expected, rtol=0, atol=1e-5)


def pointer(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def truncated(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without_metadata(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def quantized(folder):
    change(folder, quantization_config={"quant_method": "gptq", "bits": 4})


def own_code(folder):
    change(folder, model_type="own", auto_map={"AutoConfig": "own.Config"})


def change(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def tensors(folder):
    source = Source(folder)
    return {key: source.get(key) for key in source}


def compiled(folder):
    found = {f"_orig_mod.{key}": tensor.clone() for key, tensor in tensors(folder).items()}
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def one_less(folder):
    found = {key: tensor.clone() for key, tensor in tensors(folder).items() if "layers.1.mlp.up" not in key}
    save_file(found, folder / "model.safetensors", {"format": "pt"})


def another_shape(folder):
    change(folder, intermediate_size=40)


@pytest.mark.parametrize("room", [None, 2**30])
@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (pointer, r"model.safetensors is a Git LFS pointer without the weights: run `git lfs pull`"),
        (truncated, r"model.safetensors is truncated or damaged"),
        (without_shard, r"model-00001-of-00002.safetensors, which model.safetensors.index.json names, is missing"),
        (without_metadata, r"model.safetensors.index.json is no index of shards: fetch it again"),
        (adapter, r"holds a PEFT adapter: merge it"),
        (quantized, r"is already quantized \(gptq\): give the dense model"),
        (own_code, r"cannot be loaded: .*config.json asks for code of the model's own"),
        (compiled, r"other tensors .* are missing; .* are left over; save the model that torch.compile wraps"),
        (one_less, r"other tensors .*: model.layers.1.mlp.up_proj.weight are missing; get"),
        (another_shape, r"shape|size"),
    ],
)
def test_what_is_no_dense_checkpoint_is_refused_in_a_sentence(dense, spoil, sentence, room):
    spoil(dense)
    with pytest.raises((SlimrankError, UsageError), match=sentence):
        load(str(dense), room=room)


@pytest.mark.parametrize("room", [None, 2**30])
def test_a_head_that_differs_from_the_embeddings_stays_although_the_config_says_tied(dense, room, tiny_llama):
    change(dense, tie_word_embeddings=True)
    expected = tiny_llama()(input_ids=IDS).logits.detach()
    torch.testing.assert_close(logits(load(str(dense), room=room)), expected, rtol=0, atol=1e-5)
