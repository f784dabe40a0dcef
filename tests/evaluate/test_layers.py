"""Layers of random values, timed in turns."""

import itertools

import pytest
import torch

from slimrank.evaluate.layers import LEAST, Layer, in_turns
from slimrank.forms import KeptColumns
from slimrank.forms.bits import unpack

CPU = torch.device("cpu")
JOINT = [
    {"form": "joint", "rank": 6, "first": 0, "own": 4},
    {"form": "joint", "rank": 6, "first": 4, "own": 2, "leader": ""},
]


@pytest.mark.parametrize(
    ("shapes", "entries"),
    [
        ([(12, 8)], [{}]),
        ([(12, 8)], [{"form": "low_rank", "rank": 3}]),
        ([(12, 8)], [{"form": "pivoted", "rank": 3}]),
        ([(32, 64)], [{"form": "dense", "bits": 8}]),
        ([(32, 64)], [{"form": "dense", "bits": 4, "group": 32}]),
        ([(32, 64)], [{"form": "low_rank", "rank": 16, "bits": 4, "group": 32}]),
        ([(8, 8), (4, 8)], JOINT),
    ],
)
@torch.inference_mode()
def test_layers_have_the_shapes_and_forms_of_their_entries_and_run(shapes, entries):
    layers = Layer("some", 3, shapes, entries).made(CPU, torch.bfloat16)
    x = torch.randn(1, 5, shapes[0][1], dtype=torch.bfloat16)
    for layer, (rows, _), entry in zip(layers, shapes, entries, strict=True):
        y = layer(x)
        assert y.shape == (1, 5, rows) and y.isfinite().all() and y.abs().max() > 0
        if entry:
            assert layer.entry() == entry


def test_members_share_random_pivots_as_they_are_dealt():
    first, second = Layer("some", 6, [(8, 8), (4, 8)], JOINT).made(CPU, torch.float32)
    assert int(unpack(first.chosen, 8).sum()) == 4 and int(unpack(second.chosen, 4).sum()) == 2
    assert second.right is first.pivots


def test_kept_columns_are_chosen_at_random_in_order():
    layer = KeptColumns.empty(16, 8, 3, False, torch.float32, columns=5).to_empty(device="cpu")
    layer.randomize()
    kept = layer.kept.tolist()
    assert kept == sorted(set(kept)) and len(kept) == 5 and max(kept) < 16


class Machine:
    """A clock that calls move on by invented seconds, twice as many in two of three rounds, and none in one."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def call(self, seconds):
        later = itertools.chain([1, 0], itertools.cycle([2, 1, 2]))  # the first is the warm-up

        def run():
            self.now += seconds * next(later)

        return run


def test_quick_calls_count_in_turns_until_there_was_time_enough():
    machine = Machine()
    calls = {"one": [machine.call(0.3)], "two": [machine.call(0.15), machine.call(0.15)]}
    found = in_turns(calls, clock=machine)
    assert found == {"one": pytest.approx(0.3), "two": pytest.approx(0.15)} and machine.now < 60
    machine, turns = Machine(), []
    calls = {"long": [machine.call(30.0)], "counted": [lambda: turns.append(0)]}
    assert in_turns(calls, clock=machine)["long"] == 0  # of so few, the quickest
    assert len(turns) == LEAST + 1
