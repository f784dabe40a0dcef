from sessions import session

from slimrank.store.pieces import DiskPieces
from slimrank.store.stages import Stages


def test_a_refiner_run_alone_on_lasting_pieces_keeps_and_finds_its_blocks(tiny_llama, tmp_path):
    weights = session(tiny_llama()).decoder.weights
    stages = Stages(weights, DiskPieces(tmp_path))
    assert stages.stage == "alone" and stages.finished(0) is None
    stages.finish(0, {"ratio": 0.5})
    assert Stages(weights, DiskPieces(tmp_path)).finished(0) == {"ratio": 0.5}
