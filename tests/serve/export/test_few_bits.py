"""Graphs of few-bit layers: a node each, and the checkpoint's tokens."""

import onnx
import pytest
import torch
from architectures import llama
from lossless import rounded

from slimrank.checkpoint import write_checkpoint
from slimrank.forms import compressed_layers
from slimrank.serve.export import export

SIZES = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 128, "num_attention_heads": 4}


def written(bits, group, tmp_path, tokenizer):
    model = rounded(llama(vocab_size=309, **SIZES), bits, group, "dense", "low_rank")
    layers = compressed_layers(model)
    write_checkpoint(model, tmp_path / "small", layers=layers, dtype=torch.float32, tokenizer=tokenizer)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32), (3, 64), (8, 48)])
def test_onnx_runtime_gives_the_checkpoints_tokens_from_nodes(bits, group, tmp_path, tiny_tokenizer):
    written(bits, group, tmp_path, tiny_tokenizer)
    assert export(str(tmp_path / "small"), "onnx", tmp_path / "out").difference <= 1e-4
    graph = onnx.load(tmp_path / "out/model.onnx", load_external_data=False).graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 7 + 2 * 7
    widths = {attribute.i for node in nodes for attribute in node.attribute if attribute.name == "bits"}
    assert widths == {8 if bits == 8 else 4}


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "group"), [(8, None), (4, 32)])
def test_openvino_keeps_whole_numbers(bits, group, tmp_path, tiny_tokenizer):
    written(bits, group, tmp_path, tiny_tokenizer)
    assert export(str(tmp_path / "small"), "openvino", tmp_path / "out").difference <= 1e-4
    kept = (tmp_path / "out/openvino_model.xml").read_text()
    assert (
        ('element_type="u4"' in kept or 'element_type="i4"' in kept)
        if bits == 4
        else ('element_type="u8"' in kept or 'element_type="i8"' in kept)
    )
