import errno

import pytest
import torch

from slimrank.errors import SlimrankError
from slimrank.store import pieces
from slimrank.store.pieces import DiskPieces, MemoryPieces


@pytest.fixture(params=["memory", "disk"])
def kept(request, tmp_path):
    return MemoryPieces() if request.param == "memory" else DiskPieces(tmp_path / "work")


def test_what_is_saved_is_loaded_and_dropped(kept):
    assert "a/1" not in kept
    kept.save("a/1", {"x": torch.arange(3)}, {"n": [1, 0.1]})
    kept.save("a/11", {}, {"other": True})
    tensors, facts = kept.load("a/1")
    assert torch.equal(tensors["x"], torch.arange(3)) and facts == {"n": [1, 0.1]}
    kept.save("a/1", {"x": torch.ones(2)})
    assert torch.equal(kept.load("a/1")[0]["x"], torch.ones(2))
    kept.drop("a/1")
    assert "a/1" not in kept and "a/11" in kept


def test_another_process_finds_them_and_a_damaged_one_is_named(tmp_path):
    DiskPieces(tmp_path).save("a/1", {"x": torch.zeros(100)})
    assert torch.equal(DiskPieces(tmp_path).load("a/1")[0]["x"], torch.zeros(100))
    (file,) = (tmp_path / "a").glob("1.*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(SlimrankError, match=r"progress file .*damaged: remove it and give the same command again"):
        DiskPieces(tmp_path).load("a/1")


def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch):
    kept = DiskPieces(tmp_path)
    kept.save("a", {"x": torch.zeros(3)})

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pieces, "save_file", full)
    with pytest.raises(SlimrankError, match="disk is full"):
        kept.save("a", {"x": torch.ones(3)})
    assert torch.equal(kept.load("a")[0]["x"], torch.zeros(3)) and len(list(tmp_path.iterdir())) == 1


def test_a_later_writing_is_there_at_the_next_call_and_so_is_its_error(tmp_path, monkeypatch):
    kept = DiskPieces(tmp_path)
    kept.save("a", {"x": torch.ones(3)}, later=True)
    assert "a" in kept and kept.load("a")[0]["x"].tolist() == [1, 1, 1]

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("slimrank.store.pieces.save_file", full)
    kept.save("a", {"x": torch.zeros(3)}, later=True)
    with pytest.raises(SlimrankError, match="disk is full"):
        kept.load("a")
    assert kept.load("a")[0]["x"].tolist() == [1, 1, 1]


def test_a_key_may_be_longer_than_a_files_name_and_hold_what_globs_mean(tmp_path):
    pieces = DiskPieces(tmp_path)
    keys = ["rows/" + "ü" * 200, "rows/" + "ü" * 199, "rows/a[1]", "rows/a*", "rows/a1"]
    for number, key in enumerate(keys):
        assert key not in pieces
        pieces.save(key, {}, {"number": number})
    again = DiskPieces(tmp_path)
    assert [again.load(key)[1]["number"] for key in keys] == list(range(5))
    again.drop(keys[0])
    assert keys[0] not in again and keys[1] in again
