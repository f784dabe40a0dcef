"""A disk that fills while compress writes: one sentence, the old result as it was, and the same command goes on."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import kills
import pytest
import torch
from safetensors import SafetensorError
from transformers import modeling_utils

from slimrank import compress
from slimrank.errors import SlimrankError
from slimrank.run.estimate import Estimate
from slimrank.runtime.memory import Limits, Room
from slimrank.store import pieces

RECIPES = {
    "svd-llm": {"recipe": "svd-llm"},
    "searched": {
        "recipe": "dipsvd-bo",
        "settings": ["allocate.trials=2", "allocate.windows=2", "allocate.sampler=tpe"],
    },
    "distilled": {"recipe": "slimrank", "settings": ["refine=[anchored, {name: distill, tokens: 512, batch: 128}]"]},
}


@pytest.fixture
def options(tiny_llama, tiny_tokenizer, make_text, tmp_path, monkeypatch):
    tiny_llama().to(torch.bfloat16).save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(2000))
    monkeypatch.setattr(Limits, "of", lambda memory, device: Limits(2**40, 1, Room(host=1)))  # all that can be in files
    read = {"calibration": str(tmp_path / "text.txt"), "samples": 8, "window": 32, "keep": 0.6, "overwrite": True}
    return {"model": str(tmp_path / "dense"), **read}


def run(options: dict, out: Path, **more) -> None:
    options = {**options, **more}
    compress(options.pop("model"), options.pop("recipe"), out=out, **options)


def hold_something(out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "old").write_bytes(b"good")


@pytest.fixture
def disk(monkeypatch) -> SimpleNamespace:
    """disk.room: how many writes succeed before all others find it full, half of the first such one being there."""
    state = SimpleNamespace(room=10**9)

    def filling(original: Callable, place: int | None, kind: type[Exception] = OSError) -> Callable:
        def write(*args, **kwargs):
            state.room -= 1
            if state.room >= 0:
                return original(*args, **kwargs)
            if state.room == -1 and place is not None:
                Path(args[place]).write_bytes(b"half")
            if kind is SafetensorError:
                raise SafetensorError(f"Error while serializing: I/O error: No space left (os error {errno.ENOSPC})")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return write

    monkeypatch.setattr(pieces, "save_file", filling(pieces.save_file, 1, SafetensorError))
    monkeypatch.setattr(modeling_utils, "safe_save_file", filling(modeling_utils.safe_save_file, 1, SafetensorError))
    monkeypatch.setattr(Path, "write_text", filling(Path.write_text, 0))
    monkeypatch.setattr(Path, "mkdir", filling(Path.mkdir, None))
    for module, name, place in ((shutil, "copyfile", 1), (os, "posix_fallocate", None), (os, "fsync", None)):
        monkeypatch.setattr(module, name, filling(getattr(module, name), place))
    return state


def writes_of(options: dict, out: Path, disk: SimpleNamespace) -> int:
    out.parent.mkdir()
    disk.room = 10**9
    run(options, out)
    return 10**9 - disk.room


def check_full(options: dict, out: Path, disk: SimpleNamespace, room: int) -> None:
    disk.room = room
    with pytest.raises(SlimrankError, match=r"^The disk is full: .*; free some or name a folder on another disk\.$"):
        run(options, out)
    assert kills.contents(out) == {"old": b"good"}
    left = {path.name for path in out.parent.iterdir()} - {out.name, "whole"}
    assert left <= {f".{out.name}.progress"}
    disk.room = 10**9


@pytest.mark.parametrize("recipe", RECIPES)
def test_it_goes_on_from_one_full_disk_to_the_next(options, recipe, tmp_path, disk):
    options |= RECIPES[recipe]
    writes, out = writes_of(options, tmp_path / "there/whole", disk), tmp_path / "there/out"
    hold_something(out)
    for room in range(2, writes, 7):
        try:
            check_full(options, out, disk, room)
        except pytest.fail.Exception:
            break  # there was room for what was left
    assert kills.contents(out) == kills.contents(tmp_path / "there/whole")
    assert room > 10


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_fills_at_every_write(options, recipe, tmp_path, disk, record_property):
    options |= RECIPES[recipe]
    writes, out = writes_of(options, tmp_path / "there/whole", disk), tmp_path / "there/out"
    record_property("writes", writes)
    for room in range(writes):
        shutil.rmtree(tmp_path / "there/.out.progress", ignore_errors=True)
        hold_something(out)
        check_full(options, out, disk, room)
    run(options, out)
    assert kills.contents(out) == kills.contents(tmp_path / "there/whole")


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kibibytes) -> a folder on a file system of that size."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        options = f"size={size}k{',remount' if place.is_mount() else ''}"
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True)
        if made.returncode:
            pytest.skip("mounting needs rights")
        return place

    yield mount
    subprocess.run(["umount", "--lazy", place], check=False)  # tensors may still be mapped to it


@pytest.mark.skipif(shutil.which("mount") is None, reason="mounting is Linux's")
def test_a_disk_that_is_really_full(options, tmp_path, small_disk, monkeypatch):
    options |= RECIPES["svd-llm"]
    run(options, tmp_path / "whole")
    monkeypatch.setattr(Estimate, "check", lambda *_: None)
    monkeypatch.setattr("slimrank.checkpoint.files.shutil.disk_usage", lambda _: SimpleNamespace(free=2**60))
    out = small_disk(16) / "out"
    hold_something(out)
    failures = 0
    for size in range(32, 4096, 32):
        small_disk(size)
        try:
            run(options, out)
        except SlimrankError as error:
            failures += 1
            assert str(error).startswith("The disk is full: "), error
            assert kills.contents(out) == {"old": b"good"}
        else:
            break
    assert kills.contents(out) == kills.contents(tmp_path / "whole") and failures > 5
    assert [path.name for path in out.parent.iterdir()] == ["out"]
