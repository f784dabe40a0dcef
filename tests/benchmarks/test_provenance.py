import subprocess
from argparse import Namespace

import pytest

from slimrank.errors import UsageError


@pytest.fixture
def commit(script, tmp_path, monkeypatch):
    """The commit of a package in src of a folder, and git in there."""
    package = tmp_path / "src" / "package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    provenance = script("provenance")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    for key in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(key, raising=False)

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@x")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True, text=True
        ).stdout

    return provenance.commit.__wrapped__, git


def test_a_commit_is_the_checkouts_and_has_a_plus_where_src_is_changed(commit, tmp_path):
    found, git = commit
    assert found() is None
    git("init")
    assert found() is None  # a package that this checkout does not hold
    (tmp_path / "notes.txt").write_text("")
    git("add", ".")
    git("commit", "--message", "first")
    head = git("rev-parse", "HEAD").strip()
    assert found() == head and len(head) == 40
    (tmp_path / "notes.txt").write_text("other")
    (tmp_path / "src" / "scratch.py").write_text("")
    assert found() == head
    (tmp_path / "src" / "package" / "__init__.py").write_text("x = 1")
    assert found() == f"{head}+"


def test_a_commit_may_be_named_where_no_checkout_says_it(script, monkeypatch):
    provenance = script("provenance")
    options = Namespace(commit="cafe", threads=2, jobs=1)
    monkeypatch.setattr(provenance, "commit", lambda: None)
    row = provenance.here(options)
    assert (row["commit"], row["threads"], row["device"]) == ("cafe", 2, "cpu")
    monkeypatch.setattr(provenance, "commit", lambda: "beef")
    with pytest.raises(UsageError, match="--commit cafe: the checkout says that it is beef"):
        provenance.here(options)
