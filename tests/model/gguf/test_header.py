"""Damaged and unfit files: a sentence each, never a traceback and never half a model."""

import re
import struct

import pytest

from slimrank import load
from slimrank.errors import SlimrankError
from slimrank.model.gguf.header import read_header

pytest.importorskip("gguf.quants")

from gguf import GGMLQuantizationType


def refused(path) -> str:
    """The sentence."""
    with pytest.raises(SlimrankError) as found:
        load(str(path))
    sentence = str(found.value)
    assert sentence.startswith(f"MODEL {path} ") and sentence.endswith(".") and "\n" not in sentence
    assert not re.search(r"[.!?] [A-Z]", sentence), sentence
    return sentence


@pytest.mark.parametrize("place", range(20))
def test_a_file_cut_anywhere_is_refused(written, place):
    path, _ = written()
    header, whole = read_header(path), path.read_bytes()
    first, end = header.tensors[0].start, max(one.start + one.size for one in header.tensors)
    entries = whole.index(b"tokenizer.ggml.tokens")
    infos = whole.index(b"token_embd.weight")
    cuts = [
        0, 1, 3, 4, 6, 8, 12, 20, 24, 30,  # magic, version, counts, the first entry
        entries - 1, entries + 30, entries + 300, infos - 5, infos + 4, infos + 25,  # entries, then tensor infos
        first, first + 1, (first + end) // 2, end - 1,  # tensors
    ]  # fmt: skip
    path.write_bytes(whole[: cuts[place]])
    sentence = refused(path)
    assert ("is not a GGUF file" if cuts[place] < 4 else "is cut short") in sentence


def test_every_byte_of_the_header_may_be_the_last(written):
    path, _ = written()
    whole, first = path.read_bytes(), read_header(path).tensors[0].start
    for cut in [*range(0, 400), *range(400, first, 97), first - 1]:
        path.write_bytes(whole[:cut])
        with pytest.raises(SlimrankError, match=r"is cut short|is not a GGUF file"):
            read_header(path)


def test_every_byte_of_the_header_may_be_wrong(written):
    path, _ = written()
    whole, first = path.read_bytes(), read_header(path).tensors[0].start
    for place in [*range(4, 300), *range(300, first, 61)]:
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_header(path)  # a changed name, or the learned rate of nothing, may well be whole
        except SlimrankError as error:
            assert str(error).startswith(f"MODEL {path} ")


def test_the_header_says_where_each_tensor_is(written):
    path, made = written(GGMLQuantizationType.Q8_0)
    header = read_header(path)
    assert header.architecture == "llama" and header.types == ["Q8_0"]
    by_name = {one.name: one for one in header.tensors}
    assert len(by_name) == len(made)
    assert by_name["blk.1.ffn_down.weight"].shape == (64, 96) and by_name["blk.1.ffn_down.weight"].size == 64 * 3 * 34
    norm = by_name["output_norm.weight"]
    stored = struct.unpack("<64f", path.read_bytes()[norm.start : norm.start + norm.size])
    assert list(stored) == made["model.norm.weight"].tolist()


def test_what_is_no_gguf_file_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    assert "can't be read (No such file or directory)" in refused(path)
    path.write_bytes(b"")
    assert "is not a GGUF file" in refused(path)
    path.write_bytes(b"PK\x03\x04 and more")
    assert "is not a GGUF file" in refused(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "is of the GGUF version 1" in refused(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63))
    assert "is cut short" in refused(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert "has no architecture" in refused(path)


def test_a_part_of_a_split_file_is_refused(written):
    path, _ = written(more={"split.count": 2, "split.no": 0})
    assert "is one of 2 parts: join them first" in refused(path)


def test_a_part_is_refused_by_its_name_too(written):
    path, _ = written()
    assert "is one of 3 parts: join them first" in refused(path.rename(path.with_name("tiny-00002-of-00003.gguf")))
    whole = path.with_name("tiny-00001-of-00001.gguf")
    path.with_name("tiny-00002-of-00003.gguf").rename(whole)
    assert read_header(whole).architecture == "llama"


def test_a_file_without_tokenizer_is_refused(written):
    path, _ = written(tokenizer=None)
    assert "has no tokenizer (tokenizer.ggml.tokens) in it" in refused(path)
