"""What pivots in 8 bits could gain."""

import json

import pytest

from slimrank.model.units import Unit


def test_their_numbers_scales_and_bits_are_counted(script):
    alone, both = Unit(("a",), 0, "a", ((10, 6),)), Unit(("a", "b"), 0, "a", ((10, 6), (7, 6)))
    of = script("eight_bit_pivots").bytes_of
    assert of(alone, 4) == 4 * 6 + 6 * 4 + 2 * 10 + 2
    assert of(both, 4) == 4 * 6 + 13 * 4 + 2 * 17 + 3


def test_more_candidates_never_lose_more(place, run, capsys):
    asked = ["dense", "--calibration", "text.txt", "--samples", "16", "--window", "32", "--bits", "3.5,5,7"]
    run("eight_bit_pivots", *asked, "--out", "pivots.json")
    rows = json.loads((place / "pivots.json").read_text())["rows"]
    assert [row["bits"] for row in rows] == [3.5, 5, 7] and all(row["linears"] == 14 for row in rows)
    assert all(0 < row["given"] <= row["without"] * (1 + 1e-2) for row in rows)
    assert all(row["given"] == pytest.approx(row["without"]) for row in rows if not row["taken"])
    assert "| 3.5 |" in capsys.readouterr().out
