import pytest
import torch

from slimrank.store.pieces import DiskPieces, MemoryPieces
from slimrank.store.view import View


@pytest.fixture(params=["memory", "disk"])
def pieces(request, tmp_path):
    return MemoryPieces() if request.param == "memory" else DiskPieces(tmp_path)


def test_what_is_shared_is_seen_by_all_and_stays_as_it_was(pieces):
    one, two = (View(pieces, f"work/{name}", {"curves": "curves/a"}) for name in ("one", "two"))
    one.save("curves/0/x", {"values": torch.ones(2)}, {"damping": 0.5})
    two.save("curves/0/x", {"values": torch.zeros(2)})
    two.drop("curves/0/x")
    assert "curves/0/x" in two and "curves/a/0/x" in pieces
    tensors, facts = two.load("curves/0/x")
    assert tensors["values"].tolist() == [1, 1] and facts == {"damping": 0.5}
    assert one.lasting == pieces.lasting


def test_the_rest_is_each_ones_own(pieces):
    one, two = (View(pieces, f"work/{name}", {"curves": "curves/a"}) for name in ("one", "two"))
    for view, value in ((one, 1), (two, 2), (one, 3)):
        view.save("plan", {}, {"value": value})
    assert (one.load("plan")[1], two.load("plan")[1]) == ({"value": 3}, {"value": 2})
    one.save("curves/x", {})
    one.drop("plan")
    assert "plan" not in one and "plan" in two
    pieces.clear("work/two")
    assert "plan" not in two and "curves/x" in two
    pieces.clear()
    assert "curves/x" not in two


def test_files_are_each_ones_own(tmp_path):
    view = View(DiskPieces(tmp_path), "work/one", {})
    assert view.file("study") == tmp_path / "work/one/study" and view.file("study").parent.is_dir()
    assert View(MemoryPieces(), "work/one", {}).file("study") is None
