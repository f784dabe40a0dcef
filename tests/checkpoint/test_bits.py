"""Checkpoints of whole numbers: every width and form, there and back."""

import json

import pytest
import torch
from architectures import ARCHITECTURES, llama
from lossless import rounded
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from slimrank.errors import SlimrankError
from slimrank.forms import compressed_layers
from slimrank.forms.linear import shape_of
from slimrank.forms.quantized import QuantizedLinear, stored_bytes
from slimrank.model.load import load
from slimrank.serve.export import export


@pytest.mark.parametrize(("bits", "group"), [(8, None), (8, 16), (4, 16), (3, 32), (2, 16)])
@torch.no_grad()
def test_dense_and_low_rank_layers_there_and_back(bits, group, write, tokens, tmp_path):
    model = rounded(llama(), bits, group, "dense", "low_rank")
    loaded, report = AutoModelForCausalLM.from_pretrained(write(model), output_loading_info=True)
    assert not any(report.values()), report
    entries = compressed_layers(loaded)
    assert entries == compressed_layers(model)
    assert entries["model.layers.0.self_attn.q_proj"] == {"form": "dense", "bits": bits} | (
        {"group": group} if group else {}
    )
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    for name, layer in model.named_modules():
        if isinstance(layer, QuantizedLinear):
            held = layer.weight.nbytes + layer.scale.nbytes
            assert held == stored_bytes(layer.out_features, layer.in_features, bits, group, scale_bytes=4), name


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_every_architecture_in_dense_eight_bits(name, write, tokens):
    dense, model = ARCHITECTURES[name](), rounded(ARCHITECTURES[name](), 8, None, "dense")
    loaded = AutoModelForCausalLM.from_pretrained(write(model)).eval()
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    difference = loaded(tokens).logits - dense(tokens).logits
    assert difference.norm() < 0.05 * dense(tokens).logits.norm()
    layers = [layer for layer in dense.modules() if type(layer).__name__ in ("Linear", "Conv1D")]
    assert len(compressed_layers(loaded)) == len(layers) - 1 and all(shape_of(layer) for layer in layers)


@torch.no_grad()
def test_a_dense_export_has_the_numbers_times_their_scales(write, tmp_path, tiny_tokenizer):
    model = rounded(llama(max_position_embeddings=128), 4, 16, "dense", "low_rank")
    out = write(model)
    tiny_tokenizer.save_pretrained(out)
    assert export(str(out), "dense", tmp_path / "dense").difference <= 1e-4
    written = load_file(tmp_path / "dense" / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    whole = model.get_submodule("model.layers.0.self_attn.q_proj.whole")
    assert torch.equal(written, whole.matrix())


def test_damaged_scales_are_one_sentence(write, tiny_tokenizer):
    out = write(rounded(llama(), 4, 32, "dense"))
    tiny_tokenizer.save_pretrained(out)
    file, key = out / "model.safetensors", "model.layers.1.mlp.up_proj.whole.scale"
    tensors = load_file(file)
    (out / "slimrank/checksums.json").unlink()
    broken = tensors[key].clone()
    broken[3, 0] = torch.inf
    save_file(tensors | {key: broken}, file, {"format": "pt"})
    for read in (AutoModelForCausalLM.from_pretrained, load):
        with pytest.raises(
            SlimrankError, match=r"scales of the layer model.layers.1.mlp.up_proj.whole hold NaN or Inf"
        ):
            read(str(out))
    save_file({name: tensor for name, tensor in tensors.items() if name != key}, file, {"format": "pt"})
    with pytest.raises(SlimrankError, match=r"up_proj.whole.scale are missing"):
        load(str(out))
    save_file(tensors | {key: tensors[key][:-1].contiguous()}, file, {"format": "pt"})
    with pytest.raises(SlimrankError, match=r"cannot be loaded|have another shape"):
        load(str(out))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(SlimrankError, match=r"model.safetensors"):
        load(str(out))


def test_old_entries_without_a_group_are_read(write, tokens):
    out = write(rounded(llama(), 4, 32, "low_rank"))
    config = json.loads((out / "config.json").read_text())
    for entry in config["quantization_config"]["layers"].values():
        assert entry.pop("group") == 32
    expected = AutoModelForCausalLM.from_pretrained(out)(tokens).logits
    (out / "config.json").write_text(json.dumps(config))
    assert torch.equal(AutoModelForCausalLM.from_pretrained(out)(tokens).logits, expected)


@pytest.mark.parametrize(("group", "warned"), [(24, True), (32, False)])
def test_groups_without_a_kernel_are_told_when_loading(group, warned, write, recwarn):
    out = write(rounded(llama(), 4, group, "low_rank"))
    AutoModelForCausalLM.from_pretrained(out)
    said = [str(one.message) for one in recwarn if "made floats" in str(one.message)]
    assert bool(said) == warned
    assert not said or said == [
        "The numbers of model.layers.0.self_attn.q_proj.down and 23 more are made floats at every call: torch's kernel "
        "for 4 bits takes groups in multiples of 32 inputs, not 24."
    ]
