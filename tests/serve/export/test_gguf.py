"""GGUF files of dense layers in few bits: the same numbers, and the same logits through transformers."""

import gguf
import numpy as np
import pytest
import torch
from architectures import llama
from lossless import rounded
from transformers import Qwen2Config, Qwen2ForCausalLM

from slimrank.checkpoint import write_checkpoint
from slimrank.errors import SlimrankError
from slimrank.forms import compressed_layers
from slimrank.model.load import load
from slimrank.run.quantize import quantize
from slimrank.serve.export import export
from slimrank.serve.export.gguf import write_gguf
from slimrank.serve.export.gguf_header import LLAMA3, split_of

SIZES = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128, "num_attention_heads": 4}


def qwen():
    torch.manual_seed(0)
    config = Qwen2Config(vocab_size=309, num_hidden_layers=2, num_key_value_heads=2, bos_token_id=0, **SIZES)
    model = Qwen2ForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.ndim == 1 else None
    return model


def written(model, tmp_path, tokenizer, dtype=torch.bfloat16, **options):
    write_checkpoint(model, tmp_path / "dense", layers={}, dtype=dtype, tokenizer=tokenizer)
    quantize(load(str(tmp_path / "dense")), tmp_path / "small", **options)
    return load(str(tmp_path / "small"))


@pytest.mark.parametrize(
    ("bits", "group", "tied", "kind"), [(8, None, True, "Q8_0"), (4, None, False, "Q4_0"), (3, 64, True, "Q4_0")]
)
def test_holds_the_very_numbers(bits, group, tied, kind, tmp_path, tiny_tokenizer):
    model = llama(tie_word_embeddings=tied, vocab_size=309, **SIZES)
    loaded = written(model, tmp_path, tiny_tokenizer, bits=bits, group=group)
    assert export(str(tmp_path / "small"), "gguf", tmp_path / "out").difference <= 1e-4
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    assert ("output.weight" in tensors) != tied
    for name, short in (("mlp.down_proj", "ffn_down"), ("self_attn.v_proj", "attn_v"), ("self_attn.q_proj", "attn_q")):
        own, layer = tensors[f"blk.1.{short}.weight"], loaded.model.get_submodule(f"model.layers.1.{name}.whole")
        assert own.tensor_type.name == kind
        weight = layer.matrix().numpy()
        if short == "attn_q":  # each head's rotary pairs lie beside each other
            weight = weight.reshape(4, 2, 8, 64).swapaxes(1, 2).reshape(64, 64)
        assert np.array_equal(gguf.dequantize(own.data, own.tensor_type), weight)
    table = tensors["token_embd.weight"]
    assert table.tensor_type.name == "Q8_0"
    expected = loaded.model.get_input_embeddings().table.matrix().numpy()
    assert np.array_equal(gguf.dequantize(table.data, table.tensor_type), expected)
    again = load(str(tmp_path / "out/model.gguf"))
    tokens = torch.arange(3, 20)[None]
    torch.testing.assert_close(again.model(tokens).logits, loaded.model(tokens).logits, rtol=1e-4, atol=1e-4)
    fields = gguf.GGUFReader(tmp_path / "out/model.gguf").fields
    vocabulary = loaded.tokenizer.get_vocab()
    assert fields["tokenizer.ggml.tokens"].contents() == sorted(vocabulary, key=vocabulary.get)
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True


def test_biases_and_another_architecture(tmp_path, tiny_tokenizer):
    loaded = written(qwen(), tmp_path, tiny_tokenizer, bits=8)
    assert export(str(tmp_path / "small"), "gguf", tmp_path / "out").difference <= 1e-4
    tensors = {one.name: one for one in gguf.GGUFReader(tmp_path / "out/model.gguf").tensors}
    bias = loaded.model.model.layers[0].self_attn.q_proj.dense_bias()
    assert np.array_equal(tensors["blk.0.attn_q.bias"].data, bias.float().numpy())


def test_a_dense_model_is_written_in_its_own_dtype(tmp_path, tiny_tokenizer):
    model = llama(vocab_size=309, **SIZES)
    write_checkpoint(model, tmp_path / "dense", layers={}, dtype=torch.bfloat16, tokenizer=tiny_tokenizer)
    write_gguf(load(str(tmp_path / "dense")), tmp_path / "dense.gguf")
    kinds = {one.name: one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "dense.gguf").tensors}
    assert kinds["blk.0.ffn_up.weight"] == "BF16" and kinds["blk.0.attn_norm.weight"] == "F32"


@pytest.mark.parametrize(
    ("forms", "group", "message"),
    [
        (("low_rank",), 32, r"q_proj is low_rank, and llama.cpp multiplies by one matrix"),
        (("dense",), 16, r"attn_q.weight has 64 inputs, of which 16 share a scale, and GGUF's blocks are of 32"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(forms, group, message, tmp_path, tiny_tokenizer):
    model = rounded(llama(vocab_size=309, **SIZES), 4, group, *forms)
    layers = compressed_layers(model)
    write_checkpoint(model, tmp_path / "small", layers=layers, dtype=torch.float32, tokenizer=tiny_tokenizer)
    with pytest.raises(SlimrankError, match=message):
        export(str(tmp_path / "small"), "gguf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_how_texts_are_split_is_known_or_refused():
    level = {"type": "ByteLevel", "use_regex": True}
    assert split_of(level) == "gpt-2"
    digits = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]}
    assert split_of(digits) == "smollm"
    split = {"type": "Split", "pattern": {"Regex": LLAMA3}}
    assert split_of({"type": "Sequence", "pretokenizers": [split, level]}) == "llama-bpe"
    assert split_of({"type": "Metaspace"}) is None and split_of(None) is None
