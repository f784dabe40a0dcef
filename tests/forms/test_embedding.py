"""The embedding in few bits, tied to the head and not."""

import copy

import pytest
import torch
from architectures import ARCHITECTURES, llama
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from slimrank.checkpoint import write_checkpoint
from slimrank.errors import SlimrankError
from slimrank.evaluate.results import count_parameters
from slimrank.evaluate.speed import read_numbers
from slimrank.forms import Embedding, check_entry, compressed_layers
from slimrank.forms.embedding import TiedHead, put_embedding
from slimrank.refine.ends import rounded_embedding
from slimrank.serve.export import export
from slimrank.serve.export.dense import multiplied_out

TOKENS = torch.arange(3, 20)[None]


def in_bits(model, bits=8, group=None):
    """The model with its embedding, and a head that is tied to it, in so many bits."""
    plain = model.get_input_embeddings()
    name = next(path for path, module in model.named_modules() if module is plain)
    put_embedding(model, name, rounded_embedding(plain, bits, group))
    return model, name


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_every_architecture_there_and_back(name, tmp_path):
    dense = ARCHITECTURES[name]()
    model, place = in_bits(ARCHITECTURES[name]())
    tied = dense.get_output_embeddings().weight is dense.get_input_embeddings().weight
    assert isinstance(model.get_output_embeddings(), TiedHead) == tied
    expected = dense(TOKENS).logits
    assert 0 < (model(TOKENS).logits - expected).norm() < 0.05 * expected.norm()
    entries = compressed_layers(model)
    assert entries == {place: {"form": "embedding", "bits": 8}}
    write_checkpoint(model, tmp_path / "out", layers=entries, dtype=torch.float32)
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(loaded.eval()(TOKENS).logits, model(TOKENS).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again").eval()
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)
    stored = load_file(tmp_path / "again/model.safetensors")
    assert stored[f"{place}.table.weight"].dtype == torch.int8 and stored[f"{place}.weight"].numel() == 0
    assert tied != any("lm_head" in key or "embed_out" in key for key in stored)
    plain = multiplied_out(model).eval()
    torch.testing.assert_close(plain(TOKENS).logits, model(TOKENS).logits, rtol=1e-4, atol=1e-4)
    assert (plain.get_output_embeddings().weight is plain.get_input_embeddings().weight) == tied


@pytest.mark.parametrize(("bits", "group"), [(8, 16), (4, 16), (3, None)])
@torch.no_grad()
def test_looks_up_and_multiplies_by_its_numbers_times_their_scales(bits, group):
    model, _ = in_bits(llama(tie_word_embeddings=True), bits, group)
    embedding, x = model.get_input_embeddings(), torch.randn(2, 3, 32)
    weight = embedding.table.matrix()
    ids = torch.tensor([[1, 5], [5, 0]])
    assert torch.equal(embedding(ids), weight[ids])
    torch.testing.assert_close(model.get_output_embeddings()(x), x @ weight.T, rtol=1e-5, atol=1e-5)
    copied = copy.deepcopy(model)
    assert copied.get_output_embeddings().embedding is copied.get_input_embeddings()
    assert model.generate(TOKENS, max_new_tokens=3, do_sample=False).shape == (1, TOKENS.shape[1] + 3)


@pytest.mark.parametrize("tied", [False, True])
def test_numbers_are_counted_as_before(tied):
    model = llama(tie_word_embeddings=tied)
    expected = count_parameters(model), read_numbers(model)
    in_bits(model)
    assert (count_parameters(model), read_numbers(model)) == expected


def test_a_dense_export_has_a_plain_embedding(tmp_path, tiny_tokenizer):
    model, _ = in_bits(llama(tie_word_embeddings=True, max_position_embeddings=128), 4, 16)
    layers = compressed_layers(model)
    write_checkpoint(model, tmp_path / "out", layers=layers, dtype=torch.float32, tokenizer=tiny_tokenizer)
    assert export(str(tmp_path / "out"), "dense", tmp_path / "dense").difference <= 1e-4
    written = load_file(tmp_path / "dense/model.safetensors")
    assert torch.equal(written["model.embed_tokens.weight"], model.get_input_embeddings().table.matrix())


def test_entries_that_cannot_be_are_one_sentence():
    with pytest.raises(SlimrankError, match="The embedding a has no bits; give 8, 4, 3 or 2"):
        check_entry("a", {"form": Embedding.form})
    with pytest.raises(SlimrankError, match="The layer a has factors of 16 bits"):
        check_entry("a", {"form": Embedding.form, "bits": 16})
