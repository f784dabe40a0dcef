import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch) -> Callable[[str], ModuleType]:
    """script(name): a benchmark as a module."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def run(script, monkeypatch) -> Callable[..., None]:
    """run(name, *arguments): a benchmark with these arguments, in this process."""

    def call(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        script(name).main()

    return call


@pytest.fixture
def place(tiny_llama, tiny_tokenizer, make_text, tmp_path, monkeypatch) -> Path:
    """The folder to work in: a model `dense`, text.txt and two other texts."""
    tiny_llama().save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    for number, name in enumerate(("text.txt", "a/test.txt", "b/test.txt")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(make_text(4000, number))
    monkeypatch.chdir(tmp_path)
    return tmp_path
