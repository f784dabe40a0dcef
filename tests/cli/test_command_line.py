"""The command line itself: options that cannot be read, versions, help, completion."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import slimrank_command
from slimrank import recipe
from slimrank.cli.commands import COMMANDS
from slimrank.cli.main import app, main


@pytest.fixture
def shell(monkeypatch, capsys):
    """The console entry point: status, stdout, stderr."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["slimrank", *args])
        with pytest.raises(SystemExit) as stop:
            main()
        said = capsys.readouterr()
        return stop.value.code, said.out, " ".join(said.err.split())

    return run


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("compress", "demo", "--keep", "abc"), "'--keep'"),
        (("compress", "demo", "--kep", "0.8"), "No such option: --kep"),
        (("compress",), "Missing argument"),
        (("comprez",), "No such command 'comprez'"),
        (("evaluate", "demo", "--limit", "0"), "'--limit'"),
    ],
)
def test_a_mistyped_command_is_one_sentence_and_status_2(shell, args, message):
    code, out, err = shell(*args)
    assert (code, out) == (2, "") and message in err
    assert err.startswith("error: ") and err.endswith("--help.") and "│" not in err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 4000000000000 bytes."),
    ],
)
def test_no_memory_is_one_sentence_wherever_it_was_missing(shell, monkeypatch, error):
    def fails(*args, **options):
        raise error

    monkeypatch.setattr(recipe, "shipped_recipes", fails)
    assert shell("recipes") == (
        1,
        "",
        "error: Out of memory: use a shorter --window, a smaller model, or a machine with more memory.",
    )


def test_any_other_error_of_torch_comes_through(monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(recipe, "shipped_recipes", fails)
    monkeypatch.setattr(sys, "argv", ["slimrank", "recipes"])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        main()


def test_the_versions_of_a_bug_report(shell):
    code, out, _ = shell("--version")
    found = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert code == 0 and {"slimrank", "python", "platform", "torch", "transformers", "safetensors"} <= found.keys()


@pytest.mark.parametrize("command", [command.__name__.removesuffix("_") for command in COMMANDS])
def test_every_command_shows_an_example(command):
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "120"})
    assert said.exit_code == 0 and f"Example: slimrank {command}" in said.output


def test_the_shell_completes_commands_and_options(shell, monkeypatch):
    monkeypatch.setenv("_SLIMRANK_COMPLETE", "complete_bash")
    for words, expected in (
        ("slimrank comp", {"compress", "compare"}),
        ("slimrank evaluate --tasks-", {"--tasks-path"}),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
        code, out, _ = shell()
        assert code == 0 and set(out.split()) == expected


STARTS = """
import sys
import slimrank_command
sys.argv = ["slimrank", *sys.argv[1:]]
try:
    slimrank_command.main()
finally:
    print(sorted({"torch", "transformers"} & set(sys.modules)))
"""


def started(*args):
    """What the command prints in a process of its own, and at the end which of torch and transformers it has loaded."""
    source = {"PYTHONPATH": str(Path(slimrank_command.__file__).parent)}
    command = [sys.executable, "-c", STARTS, *args]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **source})
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("args", [["--help"], ["compress", "--help"], ["--version"]])
def test_help_starts_without_torch(args):
    assert started(*args)[-1] == "[]"


def test_the_command_loads_what_it_uses(tmp_path):
    options = ["--recipe", "svd", "--keep", "0.5", "--samples", "2", "--window", "32"]
    assert "torch" in started("plan", "demo", *options, "--out", tmp_path / "plan.json")[-1]
    assert (tmp_path / "plan.json").exists()
