"""Every benchmark command that the pages and the scripts quote runs as it stands: whole, with options that exist."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))
SPAN = re.compile(r"(?<!`)`([^`]{0,200}benchmarks/\w+\.py [^`]{0,600})`(?!`)")
LINE = re.compile(r"^\s*(?:python )?(benchmarks/\w+\.py .*)$", re.MULTILINE)


def quoted():
    """(place, script, arguments) of each."""
    for file in [*PAGES, *SCRIPTS]:
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        for match in [*SPAN.finditer(text), *LINE.finditer(text)]:
            words = shlex.split(match[1], comments=True)
            script = next(word for word in words if word.startswith("benchmarks/"))
            yield pytest.param(
                Path(script).stem, words[words.index(script) + 1 :], id=f"{file.name}: {Path(script).stem}"
            )


@pytest.mark.parametrize(("name", "arguments"), quoted())
def test_a_quoted_command_is_whole_and_its_options_exist(name, arguments, run, capsys):
    with pytest.raises(SystemExit) as stop:
        run(name, "--help")
    known = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", capsys.readouterr().out))
    given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    assert stop.value.code == 0 and given <= known
    assert not [word for word in arguments if "..." in word or "…" in word]
