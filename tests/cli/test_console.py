"""What is printed stands there as it is, whatever the terminal's width and whatever the names."""

import pytest

from slimrank.cli import console

NAME = "a/folder[a]/and[/a]:smile:"


@pytest.mark.parametrize("columns", ["40", "80"])
def test_a_table_shows_every_digit_in_a_narrow_terminal(columns, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    numbers = [f"{12345678901 + index:,}" for index in range(12)]
    console.table(["model", *map(str, range(12))], [(NAME, *numbers)], title=f"{NAME}: 3 windows of 32 tokens")
    title, head, row = capsys.readouterr().out.splitlines()
    assert title == f"{NAME}: 3 windows of 32 tokens" and head.split() == ["model", *map(str, range(12))]
    assert row.split() == [NAME, *numbers]


def test_brackets_in_names_are_no_markup(capsys):
    console.out.print(f"Written to {NAME}")
    console.totals({NAME: NAME})
    console.note(NAME)
    console.error(NAME)
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"Written to {NAME}", f"{NAME}  {NAME}"]
    assert said.err.splitlines() == [f"note: {NAME}", f"error: {NAME}"]
