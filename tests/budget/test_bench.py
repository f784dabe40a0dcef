"""What is timed of a model, with an invented clock, and where times are kept."""

import json

import pytest
import torch
from invented_times import invented
from tiny_spectra import windows

from slimrank.budget import times as keeping
from slimrank.budget.bench import Bench, bench_of
from slimrank.budget.kept import read_times, times_file, write_times
from slimrank.budget.layers import dealt_evenly, layers_to_time, spread
from slimrank.budget.times import timed
from slimrank.calibrate.evidence import calibrate
from slimrank.calibrate.needs import Needs
from slimrank.errors import UsageError
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.factorize.pivoted import PivotedFactorizer
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.rounding.grid import Grid
from slimrank.spectrum.spectra import stacks_of
from slimrank.store.run import Run

JOINT = PivotedFactorizer(joint=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's cache folder, which is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "slimrank" / "speed.json"


@pytest.fixture
def model(tiny_llama):
    return Compressible(Decoder(tiny_llama()))


def test_every_kind_of_block_and_every_shape_is_timed_once(model):
    bench = bench_of(model, JOINT, [Grid(8)], 16, torch.bfloat16)
    assert bench.kinds == [0, 0] and bench.firsts == [0]
    names = [layer.name for layer in bench.layers]
    assert set(names) == {
        f"{shape} {form}"
        for shape in ("32x32", "16x32", "48x32", "32x48")
        for form in ("dense", "pivoted", "dense 8b", "low_rank 8b")
    } | {"32x32+16x32+16x32 joint", "48x32+48x32 joint"}
    assert len({layer.key for layer in bench.layers}) == len(bench.layers)


def test_linears_that_share_an_input_are_those_that_calibration_finds(model):
    evidence = calibrate(model, windows(model.decoder.model.config.vocab_size), Needs())
    assert set(bench_of(model, JOINT, [], 16, torch.float32).stacks) == set(stacks_of(model, evidence.moments.leader))


def test_ranks_are_spread_from_the_first_to_the_last_and_pivots_dealt_evenly():
    assert spread(range(32, 577, 32)) == [32, 64, 96, 160, 256, 384, 576] and spread([2, 4]) == [2, 4]
    entries = JOINT.entries([(8, 8), (4, 8), (4, 8)], 7)
    dealt = [(one["first"], one["own"]) for one in dealt_evenly(entries, [(8, 8), (4, 8), (4, 8)])]
    assert dealt == [(0, 3), (3, 2), (5, 2)]


def test_no_layer_has_more_numbers_than_the_dense_one(model):
    for layer in layers_to_time(model.units.values(), [], LowRankFactorizer(), [Grid(4, 32)]):
        (shape,) = layer.shapes
        assert layer.name.split()[1] == "dense" or layer.rank * sum(shape) < shape[0] * shape[1]


def test_everything_is_measured_on_the_stored_dtype(model, monkeypatch):
    seen = {}

    def in_turns(calls, track, clock):
        for name, own in calls.items():
            with torch.inference_mode():
                seen[name] = own[0]()
        return {name: float(place + 1) for place, name in enumerate(calls)}

    monkeypatch.setattr("slimrank.budget.bench.in_turns", in_turns)
    bench = bench_of(model, JOINT, [], 16, torch.bfloat16)
    found = bench.measure(Run())
    outputs = [y for made in seen.values() for y in (made if isinstance(made, list) else [made])]
    assert {y.dtype for y in outputs} == {torch.bfloat16}
    assert seen["block 0"].shape == (1, 16, 32) and seen["head 16b 32"][0].shape == (1, 1, 320)
    assert found.blocks == [len(seen) - 1] and found.heads == {16: len(seen)}
    assert model.decoder.dtype == torch.float32  # the model itself is as it was
    assert [seconds for points in found.lines.values() for _, seconds in points] == list(range(1, len(seen) - 1))


def test_what_is_no_linear_is_what_blocks_and_head_take_beside_them(model, monkeypatch):
    monkeypatch.setattr(Bench, "measure", lambda bench, run: invented(bench))
    made = timed(bench_of(model, JOINT, [], 16, torch.float32), 1.0, Run())
    dense = sum(unit.parameters for unit in model.units.values())
    assert made.rest == 2 * 0.5 and made.dense == dense + 1.25 and made.notes == ()


def test_a_block_that_was_quicker_than_its_linears_takes_no_time_beside_them(model, monkeypatch):
    monkeypatch.setattr(Bench, "measure", lambda bench, run: invented(bench, beside=-3.0, head=7.0))
    made = timed(bench_of(model, JOINT, [], 16, torch.float32), 1.0, Run())
    assert made.rest == 0 and made.dense == 7 + sum(unit.parameters for unit in model.units.values())


def test_the_fastest_is_named_before_anything_else_is_done(model, monkeypatch):
    monkeypatch.setattr(Bench, "measure", lambda bench, run: invented(bench))
    bench = bench_of(model, LowRankFactorizer(), [], 16, torch.float32)
    least = 1.25 + sum(
        2 * sum(unit.shape) if min(unit.shape) == 32 else sum(unit.shape) for unit in model.units.values()
    )
    dense = 1.25 + sum(unit.parameters for unit in model.units.values())
    with pytest.raises(UsageError, match=r"the fastest possible is (?:\S+), ") as error:
        timed(bench, dense / least * 1.001, Run())
    named = float(str(error.value).split("possible is ")[1].split(",")[0])
    assert named <= dense / least < named + 0.001
    timed(bench, named, Run())


class Counted:
    """Measurements that say how often they were made."""

    def __init__(self):
        self.times = 0

    def __call__(self, bench, run):
        self.times += 1
        return invented(bench, beside=float(self.times))


@pytest.fixture
def measured(monkeypatch):
    counted = Counted()
    monkeypatch.setattr(Bench, "measure", lambda bench, run: counted(bench, run))
    return counted


def bench(model, tokens=16):
    return bench_of(model, JOINT, [], tokens, torch.float32)


def test_times_are_kept_for_the_same_question_on_the_same_machine(model, measured, monkeypatch, cache):
    first = timed(bench(model), 1.0, Run())
    assert timed(bench(model), 1.0, Run()).rest == first.rest and measured.times == 1
    timed(bench(model, tokens=8), 1.0, Run())
    assert measured.times == 2
    monkeypatch.setattr(keeping, "machine_name", lambda device: "another one")
    made = timed(bench(model), 1.0, Run())
    assert measured.times == 3 and made.machine == "another one" and made.notes == ()
    assert len(json.loads(cache.read_text())["machines"]) == 2


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"version": 1}', '{"version": 9, "machines": {}}', '{"version": 1, "machines": []}', "\x00\xff"],
)
def test_a_file_that_cannot_be_used_is_named_and_replaced(model, measured, cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content.encode("latin-1"))
    (said,) = timed(bench(model), 1.0, Run()).notes
    assert str(cache) in said and said.endswith("so layers were timed anew.") and "\n" not in said
    assert timed(bench(model), 1.0, Run()).notes == () and measured.times == 1


@pytest.mark.parametrize(
    "wrong", [{"blocks": ["x"]}, {"heads": {"16": -1.0}}, {"heads": {}}, {"lines": {}}, {"blocks": []}, None, 3]
)
def test_kept_times_that_are_none_are_measured_anew(model, measured, cache, wrong):
    timed(bench(model), 1.0, Run())
    content = json.loads(cache.read_text())
    (machine,) = content["machines"].values()
    (key,) = machine
    machine[key] = machine[key] | wrong if isinstance(wrong, dict) else wrong
    cache.write_text(json.dumps(content))
    notes = timed(bench(model), 1.0, Run()).notes
    assert measured.times == 2 and len(notes) == (wrong is not None)


def test_a_busy_machine_is_said_where_its_wall_clock_counts(model, measured, monkeypatch, cache):
    monkeypatch.setattr("os.getloadavg", lambda: (99.0, 0.0, 0.0))
    assert timed(bench(model), 1.0, Run()).notes == ()  # of one thread, whose own time counts
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    (said,) = timed(bench(model), 1.0, Run()).notes
    assert "a load of 99.0 on" in said and said.endswith(f"To do so, remove {cache}.")


def test_a_folder_that_cannot_be_written_is_said(model, measured, cache):
    cache.parent.parent.mkdir()
    cache.parent.write_text("in the way")
    notes = timed(bench(model), 1.0, Run()).notes
    assert any("were not kept for other runs" in note for note in notes) and measured.times == 1


def test_a_resumed_run_has_the_times_that_it_began_with(model, measured, cache):
    run = Run()
    first = timed(bench(model), 1.0, run)
    cache.unlink()
    again = timed(bench(model), 1.0, run)
    assert measured.times == 1 and (again.rest, again.times.lines) == (first.rest, first.times.lines)


def test_times_of_other_machines_and_questions_stay(cache):
    for machine, key in (("one", "a"), ("one", "b"), ("two", "a")):
        write_times(cache, machine, key, {"blocks": [1]})
    assert read_times(cache, "one", "b") == {"blocks": [1]} and read_times(cache, "two", "b") is None
    assert times_file() == cache and [path.name for path in cache.parent.iterdir()] == ["speed.json"]
