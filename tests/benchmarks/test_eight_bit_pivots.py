"""What pivots in 8 bits could gain."""

import json
from functools import partial

import pytest
import torch

from slimrank.model.units import Unit
from slimrank.numerics.grams import Grams
from slimrank.rounding.grid import Grid
from slimrank.rounding.price import Pricing, Weights, dense_price
from slimrank.spectrum.decomposition import decompose_weight


def test_their_numbers_scales_and_bits_are_counted(script):
    alone, both = Unit(("a",), 0, "a", ((10, 6),)), Unit(("a", "b"), 0, "a", ((10, 6), (7, 6)))
    of, names = script("eight_bit_pivots").bytes_of, ("others.weight", "others.scale", "chosen")
    header = sum(92 + len("a") + len(name) for name in ("weight", "pivots.weight", "pivots.scale", *names))
    assert of(alone, 4) == 4 * 6 + 6 * 4 + 2 * 10 + 2 + header
    header += sum(92 + len("b") + len(name) for name in ("weight", *names))
    assert of(both, 4) == 4 * 6 + 13 * 4 + 2 * 17 + 3 + header


def test_more_candidates_lose_no_more_and_too_few_bits_are_refused(place, run, capsys):
    asked = ["dense", "--calibration", "text.txt", "--samples", "16", "--window", "32", "--bits", "7,9,12"]
    run("eight_bit_pivots", *asked, "--out", "pivots.json")
    rows = json.loads((place / "pivots.json").read_text())["rows"]
    assert [row["bits"] for row in rows] == [7, 9, 12] and all(row["linears"] == 14 for row in rows)
    assert all(0 < row["given"] <= row["without"] * 1.1 for row in rows)  # a sweep is no exact search
    assert all(row["given"] == pytest.approx(row["without"]) for row in rows if not row["taken"])
    assert "| 7 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run("eight_bit_pivots", *asked[:-1], "1", "--out", "few.json")
    assert "--bits 1 is below the least that all linears can take" in capsys.readouterr().err


def test_at_full_rank_they_cost_what_the_whole_matrix_does_and_less_in_its_own_rows(script):
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator, dtype=torch.float64)
    price, pricing = script("eight_bit_pivots").price, Pricing((), damping=0.01)
    left, right = (gram.T @ gram for gram in (draw(40, 12), draw(40, 12)))
    weight = draw(12, 12)
    whole = dense_price(weight, Grid(8), Weights.of(left, right, two_sided=True, damping=0.01))
    full = decompose_weight(weight, Grams(left, right))
    assert price(full, left, right, 12, pricing) == pytest.approx(whole, rel=1e-6)
    cut = decompose_weight(weight[:, :6] @ draw(6, 12), Grams(left, right))
    assert 0 < price(cut, left, right, 6, pricing) < 10 * whole
