import pytest
import torch

from slimrank.model.skeleton import in_parts


@pytest.fixture
def parts(tiny_llama, tmp_path, monkeypatch):
    """Makes weights with so much room, and the list of what was in memory whenever a part was read."""
    tiny_llama(num_hidden_layers=3).save_pretrained(tmp_path)

    def make(room):
        _, weights, _ = in_parts(tmp_path, torch.float32, torch.device("cpu"), room)
        seen, read = [], weights._read
        monkeypatch.setattr(weights, "_read", lambda part: seen.append((part, list(weights._here))) or read(part))
        return weights, seen

    return make


def test_without_room_a_part_goes_before_the_next_is_read(parts):
    weights, seen = parts(0)
    for part in (0, 1, None, 2):
        with weights.hold(part):
            assert list(weights._here) == [part]
    assert seen == [(0, []), (1, []), (None, []), (2, [])]


def test_what_is_held_stays(parts):
    weights, seen = parts(0)
    with weights.hold(0), weights.hold(None):
        assert set(weights._here) == {0, None}
    assert seen == [(0, []), (None, [0])]


def test_with_room_every_part_is_read_once(parts):
    weights, seen = parts(2**30)
    for part in (0, 1, 2, 1, None, 0):
        with weights.hold(part):
            pass
    assert sorted(part for part, _ in seen if part is not None) == [0, 1, 2]
    assert len(seen) == 4


def test_a_vector_changed_in_place_is_the_dense_models_again_inside(parts):
    weights, _ = parts(2**30)
    norm = weights.model.model.norm
    with weights.hold(None):
        was = norm.weight.detach().clone()
        norm.weight.data.mul_(2)
        with weights.dense_vectors():
            assert torch.equal(norm.weight, was)
        assert torch.equal(norm.weight, 2 * was)
