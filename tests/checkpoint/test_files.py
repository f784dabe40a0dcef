import errno
import fcntl
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from safetensors import SafetensorError

from slimrank import compress
from slimrank.checkpoint.files import (
    atomic_directory,
    check_free,
    discard,
    find,
    locked,
    place_of,
    recover,
    write_text,
)
from slimrank.errors import SlimrankError, UsageError


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder that holds a result."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "result").write_text("good")
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, str]:
    """Every file below `folder`, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_appears_whole(tmp_path):
    with atomic_directory(tmp_path / "a" / "b") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "a" / "b").exists()
    assert contents(tmp_path) == {"a/b/x": "1"}


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "x").write_text("1")
    assert contents(tmp_path) == {"out/x": "1"}


def test_a_full_folder_is_kept_unless_overwrite(good):
    with pytest.raises(UsageError, match=r"out is not empty.*--overwrite"), atomic_directory(good):
        raise AssertionError("the block must not run")
    with atomic_directory(good, overwrite=True) as folder:
        (folder / "x").write_text("new")
        assert contents(good) == {"result": "good"}
    assert contents(good.parent) == {"out/x": "new"} and list(good.parent.iterdir()) == [good]


def test_a_file_is_no_folder(good):
    with pytest.raises(UsageError, match="is a file"), atomic_directory(good / "result", overwrite=True):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, SlimrankError])
def test_a_failure_leaves_the_old_result_and_nothing_else(failure, good):
    with pytest.raises(failure), atomic_directory(good, overwrite=True) as folder:
        (folder / "half").write_text("x")
        raise failure("stop")
    assert contents(good.parent) == {"out/result": "good"} and list(good.parent.iterdir()) == [good]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_interrupt_while_moving_leaves_one_whole_result(step, when, good, monkeypatch):
    calls = 0
    replace = Path.replace

    def interrupted(self, target):
        nonlocal calls
        calls += 1
        if calls == step and when == "before":
            raise KeyboardInterrupt
        replace(self, target)
        if calls == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), atomic_directory(good, overwrite=True) as folder:
        (folder / "result").write_text("new")
    assert list(good.parent.iterdir()) == [good]
    assert contents(good) == {"result": "new" if (step, when) == (2, "after") else "good"}


def test_new_folder_has_the_usual_rights(tmp_path):
    (tmp_path / "usual").mkdir()
    with atomic_directory(tmp_path / "out"):
        pass
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_link_keeps_pointing_at_its_folder(good):
    link = good.with_name("link")
    link.symlink_to(good)
    with atomic_directory(link, overwrite=True) as folder:
        (folder / "result").write_text("new")
    assert link.is_symlink() and contents(good) == {"result": "new"}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_fills_is_one_sentence(error, good):
    full = pytest.raises(SlimrankError, match=r"disk is full: .*out needs 1,234 bytes")
    with full as caught, atomic_directory(good, overwrite=True, needed_bytes=1234) as folder:
        (folder / "half").write_text("x")
        raise error
    assert caught.value.status == 1 and contents(good.parent) == {"out/result": "good"}


def test_a_full_disk_is_seen_before_writing(good, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    full = pytest.raises(SlimrankError, match=r"disk is full: .*out needs 11 bytes")
    with full, atomic_directory(good, overwrite=True, needed_bytes=11):
        raise AssertionError("the block must not run")
    assert contents(good.parent) == {"out/result": "good"}


def test_a_place_that_cannot_be_written_is_one_sentence(good):
    with pytest.raises(SlimrankError, match="could not be written"), atomic_directory(good / "result" / "x"):
        raise AssertionError("the block must not run")


def test_text_is_replaced_whole(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    write_text(path, "old")
    write_text(path, "né")
    assert path.read_bytes() == "né".encode()

    def fail(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "half")
    assert contents(tmp_path) == {"plan.json": "né"}


def test_what_a_killed_process_left_is_cleared_and_the_old_result_comes_back(good):
    for name in (".out.partial-11111111", "..out.partial-11111111.partial-22222222"):
        (good.parent / name).mkdir()
        (good.parent / name / "half").write_text("x")
    (good.parent / ".out.lock").touch()
    good.replace(good.with_name(".out.old-11111111"))
    recover(good)
    assert contents(good.parent) == {"out/result": "good"} and list(good.parent.iterdir()) == [good]
    (good.parent / ".out.old-22222222").mkdir()
    with atomic_directory(good, overwrite=True) as folder:
        (folder / "result").write_text("new")
    assert contents(good.parent) == {"out/result": "new"} and list(good.parent.iterdir()) == [good]


def test_an_old_result_that_comes_back_is_not_overwritten_unasked(good):
    good.replace(good.with_name(".out.old-11111111"))
    with pytest.raises(UsageError, match="not empty"), atomic_directory(good):
        raise AssertionError("the block must not run")
    assert contents(good) == {"result": "good"}


def test_the_progress_of_a_run_whose_name_looks_like_a_remnant_stays(good):
    names = [".out.old-2024.progress", ".out.old-22222222.progress", ".out.partial-a.progress"]
    for name in names:
        (good.parent / name).mkdir()
    with atomic_directory(good, overwrite=True) as folder:
        (folder / "result").write_text("new")
    assert sorted(path.name for path in good.parent.iterdir() if path != good) == names


def test_a_lock_that_its_owner_removed_while_it_was_opened_is_opened_again(tmp_path, monkeypatch):
    path, flock = tmp_path / "lock", fcntl.flock
    removed = []

    def late(lock, how):
        if not removed:
            removed.append(path.unlink())
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(path, tmp_path / "out"):
        assert path.exists() and removed == [None]
        with pytest.raises(UsageError, match="Another process is writing"), locked(path, tmp_path / "out"):
            raise AssertionError("the block must not run")


def test_a_mount_point_is_refused_at_once(good, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda self: self == good)
    with pytest.raises(UsageError, match="is a mount point, which cannot be replaced; name a folder inside it"):
        check_free(good, True)


def test_two_do_not_write_one_folder(good):
    with atomic_directory(good, overwrite=True) as folder:
        (folder / "result").write_text("new")
        with pytest.raises(UsageError, match="Another process is writing"), atomic_directory(good, overwrite=True):
            raise AssertionError("the block must not run")
    assert contents(good.parent) == {"out/result": "new"}


def test_a_discarded_folder_is_gone_or_cleared_later(good, monkeypatch):
    (good.parent / "work").mkdir()
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    discard(good.parent / "work", good)
    assert not (good.parent / "work").exists() and len(list(good.parent.iterdir())) == 2
    monkeypatch.undo()
    recover(good)
    assert list(good.parent.iterdir()) == [good]


def test_a_reader_finds_what_was_about_to_be_replaced(good):
    good.replace(good.with_name(".out.old-12345678"))
    (good.parent / ".out.partial-12345678").mkdir()
    assert contents(find(good)) == {"result": "good"} and list(good.parent.iterdir()) == [good]
    for name in ("missing", "a" * 3000, "nul\x00", "no/such/parent"):
        assert find(good.parent / name) == good.parent / name
    assert find(Path("org/model")) == Path("org/model") and list(good.parent.iterdir()) == [good]


def test_a_reader_is_told_of_a_writer(tmp_path):
    with atomic_directory(tmp_path / "out"), pytest.raises(UsageError, match="Another process is writing"):
        find(tmp_path / "out")


@pytest.mark.parametrize("out", [".", "..", "../here", "deeper/.."])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, out):
    (tmp_path / "here" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError, match=r"is the current folder or holds it, and would be replaced as a whole"):
        check_free(Path(out), overwrite=True)
    check_free(Path("../here/new"), overwrite=False)


def test_a_name_that_leaves_no_room_for_the_files_beside_it_is_refused(tmp_path):
    check_free(tmp_path / ("n" * 227), overwrite=False)
    with pytest.raises(UsageError, match=r"nnn\.\.\. has 228 bytes and may have 227, .*: name a shorter --out"):
        check_free(tmp_path / ("n" * 228), overwrite=False)
    with atomic_directory(tmp_path / ("n" * 227)) as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / ("n" * 227) / "a").read_text() == "a"


@pytest.mark.parametrize(("out", "match"), [("/", "root of the file system"), ("a\x00b", "NUL character")])
def test_a_place_that_no_folder_can_have_is_refused(out, match):
    with pytest.raises(UsageError, match=match):
        place_of(Path(out))
    with pytest.raises(UsageError, match=match):
        compress("demo", "svd", out=out)


def test_a_plan_is_no_folder(tmp_path):
    with pytest.raises(UsageError, match=r"plan's file .* is a folder: name a file"):
        compress("demo", "svd", plan_only=True, out=tmp_path)
