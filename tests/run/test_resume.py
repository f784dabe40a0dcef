import json
import random
import shutil
from collections import Counter

import kills
import pytest
import torch

from slimrank import compress
from slimrank.checkpoint import find
from slimrank.checkpoint.account import Account
from slimrank.errors import UsageError
from slimrank.run.estimate import Estimate
from slimrank.runtime.memory import Limits, Room, parse_size

RECIPES = {
    "slimrank": {"recipe": "slimrank"},
    "svd-llm": {"recipe": "svd-llm"},
    "anchored twice": {
        "recipe": "slimrank",
        "settings": ["refine=[{name: anchored, mix: 1.0}, {name: anchored, windows: 8}]"],
    },
    "trained": {"recipe": "svd-llm", "settings": ["refine=[{name: update}, temperature]"]},
    "distilled": {
        "recipe": "slimrank",
        "settings": ["refine=[anchored, {name: distill, tokens: 2048, batch: 128, checks: 4}]"],
    },
    "sized": {"recipe": "slimrank", "keep": None, "bits": 11.0, "settings": ["allocate.groups=[8]"]},
    "gptq": {"recipe": "gptq", "settings": ["refine.round.group=16", "refine.round.ends=8"]},
    "scales": {
        "recipe": "gptq",
        "settings": [
            "refine=[{name: round, bits: 4, group: 16, ends: 8}, {name: scales, tokens: 2048, batch: 128, checks: 4}]"
        ],
    },
    "searched": {"recipe": "dipsvd-bo", "settings": ["allocate.trials=12", "allocate.windows=4"]},
    "measured": {"recipe": "duo-svd", "settings": ["allocate.windows=2", "form=low_rank"]},
    "columns": {"recipe": "duo-svd", "settings": ["allocate=uniform"]},
}


@pytest.fixture
def options(tiny_llama, tiny_tokenizer, make_text, tmp_path):
    tiny_llama(num_hidden_layers=3).to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(4000))
    read = {"calibration": str(tmp_path / "text.txt"), "samples": 12, "window": 32, "keep": 0.6}
    return {"model": str(tmp_path / "dense"), "out": str(tmp_path / "out"), **read}


def in_this_process(options, out, **changes):
    options = {**options, **changes}
    return compress(options.pop("model"), options.pop("recipe"), **{**options, "out": out})


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_block_at_a_time_gives_what_the_whole_model_in_memory_gives(options, recipe, tmp_path, monkeypatch):
    options |= RECIPES[recipe]
    in_this_process(options, None).save(tmp_path / "whole")
    monkeypatch.setattr(Limits, "of", lambda memory, device: Limits(2**40, 1, Room()))  # room for one block
    in_this_process(options, tmp_path / "parts")
    assert kills.contents(tmp_path / "parts") == kills.contents(tmp_path / "whole")
    assert not (tmp_path / ".parts.progress").exists()


def test_tied_weights_that_are_cast_are_written_once(options, tiny_llama, tmp_path):
    options |= RECIPES["svd-llm"]
    tiny_llama(num_hidden_layers=2, tie_word_embeddings=True).save_pretrained(tmp_path / "dense")
    config = tmp_path / "dense/config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "bfloat16"}))
    in_this_process(options, None).save(tmp_path / "whole")
    in_this_process(options, tmp_path / "parts")
    assert kills.contents(tmp_path / "parts") == kills.contents(tmp_path / "whole")


def test_states_in_files_and_followed_again_change_nothing(options, tmp_path, monkeypatch):
    options |= RECIPES["slimrank"]
    in_this_process(options, tmp_path / "plenty")
    size = 12 * 32 * 32 * 4
    for name, room in (("files", 1), ("again", int(3.5 * size))):
        monkeypatch.setattr(Limits, "of", lambda memory, device, room=room: Limits(2**40, 1, Room(host=room)))
        in_this_process(options, tmp_path / name)
        assert kills.contents(tmp_path / name) == kills.contents(tmp_path / "plenty")


def killed_then_resumed(options, out, whole, **moment):
    """The killed process. Its run goes on in another one and gives what `whole` holds, nothing else being left."""
    options = {**options, "out": str(out)}
    killed = kills.run(options, **moment)
    if killed.steps is None:
        resumed = kills.run(options)
        over = resumed.error.startswith("UsageError") and not (out.parent / f".{out.name}.progress").exists()
        assert not resumed.error or over, (killed, resumed)  # over: all was done, and the kill too late
    assert kills.contents(out) == kills.contents(whole), (killed, moment)
    return killed


@pytest.mark.parametrize(
    ("recipe", "dtype"),
    [
        ("slimrank", "float32"),
        ("sized", "float32"),
        ("measured", "float32"),
        ("distilled", "float32"),
        ("distilled", "bfloat16"),
        ("scales", "float32"),
    ],
)
def test_killed_and_resumed_is_the_same_to_the_byte(options, recipe, dtype, tmp_path):
    options |= {**RECIPES[recipe], "dtype": dtype}
    steps = kills.run({**options, "out": str(tmp_path / "whole")}).steps
    for _ in range(3):
        assert kills.run(options, steps // 5).steps is None
        assert (tmp_path / ".out.progress").is_dir() and not (tmp_path / "out").exists()
    assert kills.run(options).steps < steps
    assert kills.contents(tmp_path / "out") == kills.contents(tmp_path / "whole")
    assert [Account.load(tmp_path / name).resumed for name in ("out", "whole")] == [True, False]
    assert not (tmp_path / ".out.progress").exists()


@pytest.mark.parametrize("recipe", ["slimrank", "svd-llm"])
def test_killed_at_the_end_it_is_seen_to_be_complete(options, recipe, tmp_path):
    options |= RECIPES[recipe]
    steps = kills.run({**options, "out": str(tmp_path / "whole")}).steps
    for back in (0, 1, 3):
        out = tmp_path / "result"
        killed = kills.run({**options, "out": str(out)}, steps - back)
        assert killed.stage == "write" and killed.steps is None
        times = (out / "slimrank/account.json").read_bytes()
        again = kills.run({**options, "out": str(out)})
        assert ("is not empty" in again.error) == (back == 0)  # the progress was already gone, and the run at its end
        assert (out / "slimrank/account.json").read_bytes() == times  # it was not written again
        assert kills.contents(out) == kills.contents(tmp_path / "whole")
        assert not (tmp_path / ".result.progress").exists()
        shutil.rmtree(out)


def test_a_kill_while_an_old_result_is_replaced_keeps_one_of_the_two(options, tmp_path):
    options |= RECIPES["svd-llm"] | {"overwrite": True}
    kills.run({**options, "out": str(tmp_path / "whole")})
    out, old = tmp_path / "out", {"kept": b"good"}
    steps, seen = kills.run({**options, "out": str(tmp_path / "other")}).steps, set()
    for kill in range(steps, 0, -8):  # back to where the old result still stands
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        (out / "kept").write_bytes(b"good")
        assert kills.run(options, kill).steps is None
        find(out)
        assert kills.contents(out) in (old, kills.contents(tmp_path / "whole"))
        seen.add("kept" in kills.contents(out))
        assert not kills.run(options).error
        assert kills.contents(out) == kills.contents(tmp_path / "whole")
        assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
        if seen == {True, False}:
            break
    assert seen == {True, False}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", RECIPES)
def test_killed_at_many_moments(options, recipe, tmp_path, record_property):
    """At 25 steps, which are about what is written, and at 10 times, which are about what is computed."""
    options |= RECIPES[recipe]
    whole = kills.run({**options, "out": str(tmp_path / "whole")})
    rng, stages = random.Random(recipe), Counter()
    moments = [{"die_after": step} for step in rng.sample(range(1, whole.steps + 1), 25)]
    moments += [{"die_at": rng.random() * whole.seconds} for _ in range(10)]
    for number, moment in enumerate(moments):
        killed = killed_then_resumed(options, tmp_path / f"out-{number}", tmp_path / "whole", **moment)
        stages[killed.stage if killed.steps is None else "too late"] += 1
    record_property("killed", dict(stages))
    assert stages["too late"] < 10


def test_progress_of_another_run_is_refused_by_name(options, tmp_path):
    options |= RECIPES["svd-llm"]
    kills.run(options, 12)
    for changes, key in (
        ({"keep": 0.5}, "keep"),
        ({"seed": 4}, r"calibration\.seed"),
        ({"recipe": "svd"}, r"recipe\.name"),
        ({"dtype": "bfloat16"}, "dtype"),
    ):
        with pytest.raises(UsageError, match=rf"whose {key} is .*--fresh"):
            in_this_process(options, tmp_path / "out", **changes)
    in_this_process(options, tmp_path / "out", keep=0.5, resume=False)
    assert (tmp_path / "out").is_dir() and not (tmp_path / ".out.progress").exists()


def test_a_changed_config_or_weight_is_another_model(options, tmp_path):
    options |= RECIPES["svd-llm"]
    kills.run(options, 12)
    config = tmp_path / "dense/config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "rms_norm_eps": 1e-2}))
    with pytest.raises(UsageError, match=r"whose model is .*--fresh"):
        in_this_process(options, tmp_path / "out")
    config.write_text(json.dumps({**settings, "transformers_version": "other"}))
    in_this_process(options, tmp_path / "out")


def test_what_no_number_depends_on_may_change_between(options, tmp_path, monkeypatch):
    options |= RECIPES["svd-llm"]
    kills.run(options, 60)
    monkeypatch.setattr("platform.platform", lambda: "another kernel")
    monkeypatch.setattr("slimrank.runtime.versions.OPTIONAL", ())
    in_this_process(options, tmp_path / "out")
    kills.run({**options, "out": str(tmp_path / "other")}, 60)
    monkeypatch.setattr("platform.machine", lambda: "another")
    with pytest.raises(UsageError, match=r"whose version of machine is .*another"):
        in_this_process(options, tmp_path / "other")


def test_a_fresh_run_killed_while_it_clears_leaves_nothing_to_take_up(options, tmp_path):
    options |= RECIPES["svd-llm"]
    kills.run({**options, "out": str(tmp_path / "whole"), "seed": 4})
    kills.run(options, 60)
    assert any((tmp_path / ".out.progress/inputs").iterdir())
    assert kills.run({**options, "seed": 4, "resume": False}, 4).steps is None  # in the midst of it
    assert any((tmp_path / ".out.progress/inputs").iterdir())
    in_this_process(options, tmp_path / "out", seed=4)
    assert kills.contents(tmp_path / "out") == kills.contents(tmp_path / "whole")


def test_what_is_kept_needs_no_room_again(options, tmp_path, monkeypatch):
    options |= RECIPES["svd-llm"]
    disks = []
    monkeypatch.setattr(Estimate, "check", lambda self, limits, folder, asked, kept: disks.append((self.disk, kept)))
    kills.run(options, 60)
    in_this_process(options, tmp_path / "out")
    ((disk, kept),) = disks
    assert 0.1 * disk < kept < disk


def test_too_little_memory_is_refused_before_the_work(options, tmp_path):
    options |= RECIPES["svd-llm"]
    with pytest.raises(UsageError, match=r"--memory 100\.0 MiB is too little: about \d"):
        in_this_process(options, tmp_path / "out", memory=parse_size("100MiB"))
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.progress").exists()


def test_too_small_a_keep_leaves_no_progress(options, tmp_path):
    options |= RECIPES["svd-llm"]
    with pytest.raises(UsageError, match=r"--keep 0\.001 leaves .* give --keep 0\.\d+ or more"):
        in_this_process(options, tmp_path / "out", keep=0.001)
    assert not (tmp_path / ".out.progress").exists()


@pytest.mark.parametrize(("text", "size"), [("8GiB", 2**33), ("8GB", 8 * 10**9), ("1.5 M", 1_500_000), ("77", 77)])
def test_sizes(text, size):
    assert parse_size(text) == size
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(f"-{text}")


def test_two_processes_do_not_write_one_folder(options, tmp_path):
    from slimrank.run.resume import progress_of

    options |= RECIPES["svd-llm"]
    with progress_of(tmp_path / "out", False, True), pytest.raises(UsageError, match="Another process is writing"):
        in_this_process(options, tmp_path / "out")
