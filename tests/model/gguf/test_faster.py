import numpy as np
import pytest

pytest.importorskip("gguf.quants")

import gguf
from gguf import GGMLQuantizationType as Kind

from slimrank.model.gguf import faster, header


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.BF16, Kind.Q8_0, Kind.Q4_1, Kind.Q5_0])
def test_it_answers_as_the_library(written, kind):
    path, _ = written(kind)
    usual = gguf.GGUFReader(path)
    with faster.faster(path, header.read_header(path), vocabulary=True):
        ours = gguf.GGUFReader(path)
        assert isinstance(ours, faster.Reader)
        for mine, theirs in zip(ours.tensors, usual.tensors, strict=True):
            assert (mine.name, mine.tensor_type) == (theirs.name, theirs.tensor_type)
            made = gguf.dequantize(mine.data, mine.tensor_type)
            expected = faster._usual_dequantize(theirs.data, theirs.tensor_type)
            assert made.dtype == expected.dtype and np.array_equal(made, expected)
        theirs = {key: field for key, field in usual.fields.items() if not key.startswith("GGUF.")}
        assert ours.fields.keys() == theirs.keys()
        for key, field in theirs.items():
            mine = ours.fields[key]
            assert mine.types == field.types and len(mine.data) == len(field.data)
            for one, other in zip(mine.data, field.data, strict=True):
                assert list(mine.parts[one]) == list(field.parts[other])
    assert gguf.GGUFReader is faster._usual_reader and gguf.dequantize is faster._usual_dequantize


def test_groups_of_rows_are_put_together_again(written, monkeypatch):
    monkeypatch.setattr(faster, "GROUP", 96)
    data = gguf.quantize(np.random.default_rng(0).normal(size=(7, 3, 64)).astype(np.float32), Kind.Q4_1)
    path, _ = written()
    with faster.faster(path, header.read_header(path), vocabulary=True):
        assert np.array_equal(gguf.dequantize(data, Kind.Q4_1), faster._usual_dequantize(data, Kind.Q4_1))


def test_without_the_vocabulary_the_number_of_tokens_stays(written, tiny_tokenizer):
    path, _ = written()
    fields = faster.Reader(path, header.read_header(path), vocabulary=False).fields
    assert len(fields["tokenizer.ggml.tokens"].data) == len(tiny_tokenizer)
    assert "tokenizer.ggml.merges" not in fields and "tokenizer.ggml.bos_token_id" in fields
    assert "tokenizer.chat_template" in fields


def test_the_library_is_itself_again_after_an_error(written):
    path, _ = written()
    with pytest.raises(ZeroDivisionError), faster.faster(path, header.read_header(path), vocabulary=True):
        1 / 0  # noqa: B018
    assert gguf.GGUFReader is faster._usual_reader
