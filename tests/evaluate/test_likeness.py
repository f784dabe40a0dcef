import json

import pytest
from typer.testing import CliRunner

from slimrank import compress, evaluate_models, load
from slimrank.calibrate import read_text
from slimrank.checkpoint.account import Account
from slimrank.cli.main import app
from slimrank.evaluate.likeness import Distance
from slimrank.evaluate.perplexity import text_windows
from slimrank.texts.reading import Reading, read_windows

READ = ["--window", "32", "--max-windows", "8"]


@pytest.fixture
def small(place, make_text):
    """A place with a compressed model, and texts like its calibration text and unlike it."""
    compress("dense", "svd", keep=0.6, calibration="text.txt", samples=64, window=32, out="small")
    (place / "like.txt").write_text(make_text(4000, seed=5))
    (place / "unlike.txt").write_text("ZXQV 0123456789 " * 400)
    return place


def test_a_text_is_as_far_as_usual_or_as_far_as_can_be(small):
    like, unlike = "like.txt", "unlike.txt"
    (found,) = evaluate_models(["small"], [like, unlike], window=32, max_windows=8, special_tokens="none")
    (tokens,) = Account.load(small / "small").calibration
    ids = read_windows(load("dense"), Reading("text.txt", 64, 32, 3)).calibration
    assert sum(tokens.counts) == ids.numel() and tokens.counts == ids.unique(return_counts=True)[1].tolist()
    assert found.distances[like].usual == tokens.usual_at(8 * 32) == dict(tokens.usual)[256]
    assert found.distances[like].value == pytest.approx(found.distances[like].usual, abs=0.05)
    assert found.distances[unlike].value > 0.8  # they share the space alone
    assert found.notes == (
        f"unlike.txt is unlike any text that small was calibrated on (distance {found.distances[unlike].value:.2f}; as "
        f"many tokens of that text itself: {found.distances[like].usual:.2f}): expect it to lose more here than there.",
    )


def test_the_command_says_so_in_its_table_its_json_and_the_report(small):
    args = ["evaluate", "dense", "small", "--text", "text.txt", "--text", "unlike.txt", *READ, "--json", "out.json"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[1].split()[-1] == "distance" and max(map(len, lines)) <= 80
    dense, own = json.loads((small / "out.json").read_text())["models"]
    found = own["texts"]["text.txt"]
    assert lines[3].endswith(f"  {found['distance']:.2f} ({found['distance_usual']:.2f})")
    assert dense["texts"]["text.txt"]["distance"] is None and len(own["notes"]) == 1
    assert f"note: {own['notes'][0]}" in result.stderr
    assert CliRunner().invoke(app, ["report", "small", "--evaluation", "out.json"]).exit_code == 0
    page = (small / "small" / "slimrank" / "report.html").read_text()
    assert f"<td>{found['distance']:.2f} ({found['distance_usual']:.2f})</td>" in page
    assert "unlike.txt is unlike any text that small was calibrated on" in page


def test_an_account_without_the_tokens_is_no_obstacle(small):
    path = small / "small" / "slimrank" / "account.json"
    account = json.loads(path.read_text())
    del account["calibration"]
    path.write_text(json.dumps(account))
    (found,) = evaluate_models(["small"], ["text.txt"], window=32, max_windows=8)
    assert not found.distances and "did not keep what its calibration text is like" in found.notes[0]
    path.write_text("{")
    (found,) = evaluate_models(["small"], ["text.txt"], window=32, max_windows=8)
    assert not found.distances and "is not known: " in found.notes[0] and "damaged" in found.notes[0]


def test_the_distance_is_from_the_nearest_calibration_text(small):
    mix = ["text.txt*0.25", "unlike.txt"]
    compress("dense", "svd", keep=0.6, calibration=mix, samples=64, window=32, out="mixed")
    tokens = Account.load(small / "mixed").calibration
    assert [sum(one.counts) for one in tokens] == [16 * 32, 48 * 32]
    (found,) = evaluate_models(["mixed"], ["like.txt", "unlike.txt"], window=32, max_windows=8, special_tokens="none")
    for text, own, other in (("like.txt", *tokens), ("unlike.txt", *tokens[::-1])):
        far = found.distances[text]
        assert far.usual == own.usual_at(256) and far.value <= far.usual + 0.05
        assert far == Distance.of(ids_of(text), [other, own]) and Distance.of(ids_of(text), [other]).value > 0.8
    assert not found.notes


def ids_of(text):
    return text_windows(load("dense").tokenizer, read_text(text), 32, 8, "none")


def test_unlike_is_a_tenth_of_the_tokens_more_than_usual():
    assert Distance(0.41, 0.3).unlike and not Distance(0.39, 0.3).unlike
    assert Distance(0.11, None).unlike and Distance(0.11, None).told() == "0.11"
    assert Distance(0.41, 0.08).told() == "0.41 (0.08)"
