from slimrank.model.decoder import Decoder
from slimrank.store.pieces import DiskPieces
from slimrank.store.stages import Stages

NAMES = ["factorise", "refine-0"]


def test_a_stage_finds_what_an_earlier_process_finished_of_it(tiny_llama, tmp_path):
    weights = Decoder(tiny_llama()).weights
    stage = Stages(NAMES, weights, DiskPieces(tmp_path)).at("factorise")
    assert stage.finished(0) is None
    stage.finish(0, {"ratio": 0.5})
    again = Stages(NAMES, weights, DiskPieces(tmp_path))
    assert again.at("factorise").finished(0) == {"ratio": 0.5}
    assert again.at("refine-0").finished(0) is None


def test_a_later_stage_takes_the_place_of_an_earlier_one_and_keeps_its_facts(tiny_llama, tmp_path):
    pieces = DiskPieces(tmp_path)
    stages = Stages(NAMES, Decoder(tiny_llama()).weights, pieces)
    stages.at("factorise").finish(1, {"built": 1})
    stages.at("refine-0").finish(1, {"moved": 2})
    assert "factorise/1" not in pieces and "refine-0/1" in pieces
    assert stages.at("factorise").finished(1) == {"built": 1}
    assert stages.at("refine-0").finished(1) == {"moved": 2}
