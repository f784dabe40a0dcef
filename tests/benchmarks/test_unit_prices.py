"""The prices of choices, predicted and measured, a linear at a time."""

import json
from collections import Counter

from slimrank.model.units import Unit


def test_linears_are_taken_evenly_over_blocks_and_types(script):
    units = [Unit((f"{block}.{role}",), block, role, ((4, 4),)) for block in range(30) for role in "abcdefg"]
    found = script("unit_prices").sampled(units, 30, 3)
    assert [unit.block for unit in found] == list(range(30))
    assert sorted(Counter(unit.role for unit in found).values()) == [4, 4, 4, 4, 4, 5, 5]
    assert set(script("unit_prices").sampled(units, 500, 3)) == set(units)
    few = script("unit_prices").sampled(units, 7, 3)
    assert len({unit.role for unit in few}) == 7 and [unit.block for unit in few] == [0, 4, 8, 12, 17, 21, 25]


def test_a_row_for_every_choice_and_none_is_measured_twice(place, run, capsys):
    asked = ["dense", "--calibration", "text.txt", "--text", "a/test.txt", "--samples", "16", "--window", "32"]
    asked += ["--windows", "4", "--out", "prices.json", "--units"]
    run("unit_prices", *asked, "2")
    first = json.loads((place / "prices.json").read_text())["rows"]
    run("unit_prices", *asked, "3")
    rows = json.loads((place / "prices.json").read_text())["rows"]
    assert rows[:4] == first[:4] and len({(row["linear"], row["choice"]) for row in rows}) == len(rows)
    for linear in {row["linear"] for row in rows}:
        own = {row["choice"]: row for row in rows if row["linear"] == linear}
        for key in ("predicted", "measured"):
            assert own["8 bits"][key] < own["4 bits"][key] < own["half the numbers, 4 bits"][key]
        cut = own["half the numbers"]
        assert 0.1 < cut["measured"] / cut["predicted"] < 10
        m, n = cut["shape"]
        assert cut["rank"] == m * n // (2 * (m + n)) and own["8 bits"]["rank"] is None
    assert "| all | 12 |" in capsys.readouterr().out
