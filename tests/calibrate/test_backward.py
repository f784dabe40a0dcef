import pytest

from slimrank.calibrate.backward import stride


@pytest.mark.parametrize(("sets", "step"), [(99, 1), (33, 1), (32, 2), (18, 2), (13, 4), (12, 4), (11, 6)])
def test_states_are_held_for_as_many_blocks_as_there_is_room_for_else_for_the_fewest(sets, step):
    assert stride(32, sets) == step
