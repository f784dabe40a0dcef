import html
import json
import re
import shlex
from collections import Counter
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

from slimrank import evaluate_models, load
from slimrank.calibrate import read_text
from slimrank.cli.commands.compare import parse_keeps
from slimrank.cli.main import app
from slimrank.errors import UsageError
from slimrank.model.decoder import Decoder
from slimrank.recipe import load_recipe
from slimrank.run import pace
from slimrank.run.compare import compare, runs_of
from slimrank.run.compress import compress
from slimrank.runtime.memory import Limits, Room
from slimrank.spectrum.decompose import curve_job
from slimrank.spectrum.spectra import Spectra
from slimrank.store import pieces
from slimrank.texts.reading import Reading


@pytest.fixture
def place(tiny_llama, tiny_tokenizer, make_text, tmp_path, monkeypatch):
    tiny_llama().save_pretrained(tmp_path / "dense")
    tiny_tokenizer.save_pretrained(tmp_path / "dense")
    (tmp_path / "text.txt").write_text(make_text(4000))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_row_is_what_a_run_of_its_own_gives_and_the_model_ends_as_it_began(place):
    loaded, text = load("dense"), read_text("text.txt")
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    recipes = [load_recipe("svd-llm"), load_recipe("svd-llm-distilled", ["refine=[{name: distill, tokens: 1024}]"])]
    reading = Reading("text.txt", 16, 32, 3)
    runs = [(recipe, keep) for recipe in recipes for keep in (0.6, 0.4)]
    rows = list(compare(loaded, runs, [text], reading, max_windows=8))
    after = dict(loaded.model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert [(row.recipe, row.keep) for row in rows[1:3]] == [("svd-llm", 0.6), ("svd-llm", 0.4)]
    for row, recipe in zip(rows[1:], [r for r in recipes for _ in range(2)], strict=True):
        own = compress("dense", recipe, keep=row.keep, calibration="text.txt", samples=16, window=32)
        dense, found = evaluate_models([load("dense"), own.loaded], [text], window=32, max_windows=8)
        measured, expected = row.texts["text.txt"], found.texts["text.txt"]
        assert measured.nats == pytest.approx(expected.nats, abs=1e-6)
        assert measured.kl == pytest.approx(expected.kl, abs=1e-6)
        assert measured.lost(rows[0].texts["text.txt"]) == pytest.approx(found.lost(dense)["text.txt"], abs=1e-6)
        assert row.linears == own.plan.budget.used and row.plan.linears.keys() == own.plan.linears.keys()


def test_the_model_is_the_rows_own_until_the_next_and_a_run_that_fails_is_left_out(place, monkeypatch):
    loaded, text = load("dense"), read_text("text.txt")
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    scan = load_recipe("asvd", ["allocate.windows=99"])  # more than there are
    runs, told = [(load_recipe("svd"), 0.6), (scan, 0.6), (load_recipe("svd-llm"), 0.6)], []
    options = {"max_windows": 4, "failed": lambda *run: told.append(run)}
    for row in compare(loaded, runs, [text], READING, **options):
        now = evaluate_models([loaded], [text], window=READING.window, max_windows=4)[0].texts["text.txt"]
        assert now.nats == pytest.approx(row.texts["text.txt"].nats, abs=1e-6)
        told.append(row.recipe)
    assert told[:2] == ["dense", "svd"] and told[3:] == ["svd-llm"]
    recipe, keep, error = told[2]
    assert (recipe, keep) == (scan, 0.6) and str(error).startswith("allocate.windows 99 is more than")
    found = compare(loaded, runs, [text], READING, max_windows=4)
    next(found), next(found)
    found.close()
    after = dict(loaded.model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with pytest.raises(UsageError, match=r"allocate\.windows 99"):
        list(compare(loaded, runs, [text], READING, max_windows=4))


def test_the_command_writes_json_and_its_page(place):
    args = ["compare", "dense", "--recipes", "svd,svd-llm", "--keep", "0.6,0.4", "--calibration", "text.txt"]
    args += ["--text", "text.txt", "--samples", "8", "--window", "32", "--max-windows", "4", "--out", "out"]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    rows = json.loads((place / "out" / "compare.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == ["dense", "svd", "svd", "svd-llm", "svd-llm"]
    assert rows[0]["nats_lost"]["text.txt"] == 0 and rows[1]["plan"]["budget"]["used"] == rows[1]["linears"]
    assert rows[1]["texts"]["text.txt"]["kl"] > 0 == rows[0]["texts"]["text.txt"]["kl"]
    assert {"perplexity_stderr", "nats_lost_stderr", "kl_stderr"} <= rows[1]["texts"]["text.txt"].keys()
    assert "KL" in result.output and max(map(len, result.stdout.splitlines())) <= 80
    assert "Report: out/report.html" in result.output and (place / "out" / "report.html").is_file()
    assert sorted(file.name for file in (place / "out").iterdir()) == ["compare.json", "report.html"]


def test_the_command_is_kept_as_it_was_given(place):
    args = ["compare", "dense", "--recipes", "svd,svd-llm", "--keep", "0.60", "--text", "demo", "--text", "text.txt"]
    args += ["--calibration", "demo", "--samples", "8", "--window", "32", "--max-windows", "4"]
    args += ["--special-tokens", "none", "--seed", "5", "--set", "svd-llm:form=pivoted", "--refine", "none"]
    args += ["--device", "cpu", "--dtype", "float32"]
    first, again = CliRunner().invoke(app, [*args, "--out", "a b"]), place / "again"
    assert first.exit_code == 0, first.output
    page = html.unescape((place / "a b" / "report.html").read_text())
    command = shlex.split(re.search(r'<pre class="command">(.*?)</pre>', page, re.DOTALL)[1])
    assert command[:3] == ["slimrank", *args[:2]] and sorted(command[3:]) == sorted(args[2:])
    assert CliRunner().invoke(app, [*command[1:], "--out", str(again)]).exit_code == 0
    one, two = (json.loads((folder / "compare.json").read_text()) for folder in (place / "a b", again))
    assert one["settings"] == two["settings"]
    assert [row["texts"] for row in one["rows"]] == [row["texts"] for row in two["rows"]]


RECIPES = {
    "svd-llm": [],
    "svd-llm-v2": [],
    "svd-llm-update": [],
    "duo-svd": ["allocate.windows=4"],
    "dipsvd-bo": ["allocate.trials=4", "allocate.windows=4"],
    "svd-llm-distilled": ["refine=[{name: distill, tokens: 1024}]"],
    "slimrank": [],
}
READING = Reading("text.txt", 12, 32, 3)


def rows_of(recipes=RECIPES, keeps=(0.6,), **options):
    """The rows without their seconds."""
    runs = [(load_recipe(name, RECIPES[name]), keep) for name in recipes for keep in keeps]
    options = {"max_windows": 8, **options}
    rows = list(compare("dense", runs, [read_text("text.txt")], READING, **options))
    assert all(row.seconds is None or row.seconds > 0 for row in rows[1:])
    return [replace(row, seconds=0.0) for row in rows]


def one_block(memory, device):
    """Limits with room for a block of the model and a window's states."""
    return Limits(2**40, 1, Room(host=1))


def test_a_block_at_a_time_gives_what_the_whole_model_in_memory_gives(place, monkeypatch):
    whole = rows_of()
    monkeypatch.setattr(Limits, "of", one_block)
    parts = rows_of(out=place / "out")
    assert [row.recipe for row in parts] == ["dense", *RECIPES]
    for one, other in zip(whole, parts, strict=True):
        assert one == other, one.recipe
    assert list((place / "out").iterdir()) == []


def test_spectra_are_found_once_a_metric(place, monkeypatch):
    found = []

    def counted(spectra, unit, *rest):
        found.append(unit)
        return curve_job(spectra, unit, *rest)

    monkeypatch.setattr("slimrank.spectrum.decompose.curve_job", counted)
    for out in (None, place / "out"):
        found.clear()
        rows_of(["svd-llm", "svd-llm-update", "svd-llm-v2"], keeps=(0.8, 0.6), out=out)
        assert len(found) == 2 * 14 and set(Counter(found).values()) == {2}  # by two routes


class Killed(BaseException):
    """What no code handles."""


def test_a_killed_comparison_goes_on_with_what_it_has(place, monkeypatch):
    save, run, blocks, left = pieces.save_file, Decoder.run, Counter(), 10**6

    def counted(self, index, hidden, call):
        blocks["run"] += 1
        return run(self, index, hidden, call)

    def dying(*args, **kwargs):
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed
        return save(*args, **kwargs)

    monkeypatch.setattr(Decoder, "run", counted)
    monkeypatch.setattr(pace, "TIMED", 0.0)  # else the estimate runs a block as often as fits in that
    monkeypatch.setattr(pieces, "save_file", dying)
    asked = {"recipes": ["svd-llm", "svd-llm-distilled", "slimrank"]}
    whole, out, rows, deaths = rows_of(**asked, out=place / "whole"), place / "out", [], 0
    all_runs = blocks["run"]
    while not rows:
        left, blocks["run"] = 15, 0
        try:
            rows = rows_of(**asked, out=out)
        except Killed:
            deaths += 1
            assert deaths < 40
    assert rows == whole and deaths > 3
    assert blocks["run"] < 0.8 * all_runs  # neither the moments nor the rows before were made again
    assert list(out.iterdir()) == []


def test_progress_is_of_one_calibration_and_of_any_recipes(place, monkeypatch):
    def interrupted(recipes, **options):
        runs = [(load_recipe(name), 0.6) for name in recipes]
        found = compare("dense", runs, [read_text("text.txt")], out=place / "out", max_windows=8, **options)
        return next(found), next(found)

    before = interrupted(["svd-llm", "svd"], reading=READING)
    with monkeypatch.context() as patch:
        patch.setattr(Spectra, "grams", None)  # nothing is decomposed or built
        assert interrupted(["svd-llm", "svd"], reading=READING) == before
    with pytest.raises(UsageError, match=r"whose calibration\.seed is 3, and this one's is 4: .*--fresh"):
        interrupted(["svd"], reading=replace(READING, seed=4))
    assert interrupted(["svd"], reading=replace(READING, seed=4), resume=False)[1].recipe == "svd"


def test_several_calibration_texts_are_shared_by_all_rows(place, make_text):
    (place / "other.txt").write_text(make_text(4000, seed=1))
    args = ["compare", "dense", "--recipes", "svd-llm", "--keep", "0.6", "--text", "text.txt", "--samples", "8"]
    args += ["--window", "32", "--max-windows", "4", "--out", "out", "--calibration"]
    result = CliRunner().invoke(app, [*args, "text.txt*0.75", "--calibration", "other.txt"])
    assert result.exit_code == 0, result.output
    found = json.loads((place / "out" / "compare.json").read_text())
    assert found["settings"]["reading"]["spec"] == ["text.txt*0.75", "other.txt"]
    assert [text["share"] for text in found["rows"][1]["plan"]["calibration"]["texts"]] == [0.75, 0.25]
    own = compress("dense", "svd-llm", keep=0.6, calibration=["text.txt*0.75", "other.txt"], samples=8, window=32)
    linears = found["rows"][1]["plan"]["linears"]
    assert {name: one["measured"] for name, one in linears.items()} == {
        name: one.measured for name, one in own.plan.linears.items()
    }
    assert CliRunner().invoke(app, [*args, "text.txt"]).exit_code == 0
    assert json.loads((place / "out" / "compare.json").read_text())["settings"]["reading"]["spec"] == "text.txt"


def test_memory_that_is_too_little_is_refused(place):
    args = ["compare", "dense", "--recipes", "svd", "--calibration", "text.txt", "--text", "text.txt"]
    args += ["--samples", "8", "--window", "32", "--memory", "100MiB"]
    result = CliRunner().invoke(app, args)
    assert isinstance(result.exception, UsageError) and "--memory needs --out" in str(result.exception)
    result = CliRunner().invoke(app, [*args, "--out", "out"])
    assert isinstance(result.exception, UsageError) and "--memory 100.0 MiB is too little" in str(result.exception)


@pytest.mark.parametrize("command", ["compare", "compress", "plan"])
def test_an_empty_calibration_is_refused(command):
    needed = {"compare": ["--recipes", "svd"], "compress": [], "plan": ["--out", "plan.json"]}[command]
    result = CliRunner().invoke(app, [command, "demo", "--calibration", "", *needed])
    assert isinstance(result.exception, UsageError) and "--calibration is empty" in str(result.exception)


def test_keeps_that_are_no_numbers():
    assert parse_keeps("0.8,0.6") == [0.8, 0.6]
    with pytest.raises(UsageError, match="separated by commas"):
        parse_keeps("0.8;0.6")
    with pytest.raises(UsageError, match=r"--keep 0\.8,60 must be above 0 and at most 1"):
        parse_keeps("0.8,60")


def test_a_recipe_that_fails_leaves_the_rows_before_it_and_an_earlier_comparison(place):
    (place / "out").mkdir()
    (place / "out" / "compare.json").write_text("earlier")
    args = ["compare", "dense", "--recipes", "svd,duo-svd", "--keep", "0.6", "--calibration", "text.txt"]
    args += ["--text", "text.txt", "--samples", "8", "--window", "32", "--max-windows", "4", "--out", "out"]
    result = CliRunner().invoke(app, args)
    assert isinstance(result.exception, UsageError) and "32 is more than the 8" in str(result.exception)
    rows = json.loads((place / "out" / "compare.partial.json").read_text())["rows"]
    assert [row["recipe"] for row in rows] == ["dense", "svd"]
    assert (place / "out" / "compare.json").read_text() == "earlier"


SIZE = 45_000


def sized_runs():
    """The recipe slimrank at a keep and at a size, and one that cuts nothing."""
    gptq = load_recipe("gptq", ["refine.round.group=16", "refine.round.ends=8"])
    return [(load_recipe("slimrank"), 0.6), (load_recipe("slimrank"), 1.0, SIZE), (gptq, 1.0)]


def test_a_row_of_a_size_is_what_a_run_of_its_own_gives_in_memory_and_a_block_at_a_time(place, monkeypatch):
    loaded, texts, options = load("dense"), [read_text("text.txt")], {"max_windows": 8}
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    rows = list(compare(loaded, sized_runs(), texts, READING, **options))
    after = dict(loaded.model.named_parameters())
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert [(row.recipe, row.keep, row.size, row.budget) for row in rows[1:]] == [
        ("slimrank", 0.6, None, "0.6"), ("slimrank", 1.0, SIZE, "0.045 MB"), ("gptq", 1.0, None, "1"),
    ]  # fmt: skip
    own = compress("dense", size=SIZE, calibration="text.txt", samples=READING.samples, window=READING.window)
    found = evaluate_models([own.loaded], texts, window=READING.window, max_windows=8)[0].texts["text.txt"]
    assert rows[2].texts["text.txt"].nats == pytest.approx(found.nats, abs=1e-6)
    assert rows[2].plan.size == own.plan.size and rows[2].plan.grids() == own.plan.grids() != {}
    assert rows[2].bytes < own.plan.size.used <= SIZE
    monkeypatch.setattr(Limits, "of", one_block)
    parts = compare("dense", sized_runs(), texts, READING, out=place / "out", **options)
    assert [replace(row, seconds=0.0) for row in parts] == [replace(row, seconds=0.0) for row in rows]
    assert list((place / "out").iterdir()) == []


def test_recipes_go_by_sizes_by_keeps_or_stand_alone():
    slimrank, svd, gptq = (load_recipe(name) for name in ("slimrank", "svd", "gptq"))
    assert runs_of(slimrank, [0.8], [9, 7]) == [(slimrank, 1.0, 9), (slimrank, 1.0, 7)]
    assert runs_of(slimrank, [0.8], []) == [(slimrank, 0.8, None)]
    assert runs_of(svd, [0.8, 0.6], [9]) == [(svd, 0.8, None), (svd, 0.6, None)]
    assert runs_of(gptq, [0.8, 0.6], [9]) == [(gptq, 1.0, None)]


def test_the_command_compares_at_sizes(place):
    args = ["compare", "dense", "--recipes", "slimrank,svd,gptq", "--keep", "0.6", "--calibration", "text.txt"]
    args += ["--text", "text.txt", "--samples", "8", "--window", "32", "--max-windows", "4"]
    result = CliRunner().invoke(app, [*args, "--sizes", f"{SIZE},0.06MB", "--out", "out"])
    assert result.exit_code == 0, result.output
    rows = json.loads((place / "out" / "compare.json").read_text())["rows"]
    assert [(row["recipe"], row["keep"], row["size"]) for row in rows] == [
        ("dense", 1.0, None), ("slimrank", 1.0, SIZE), ("slimrank", 1.0, 60_000),
        ("svd", 0.6, None), ("gptq", 1.0, None),
    ]  # fmt: skip
    assert rows[1]["plan"]["size"]["used"] <= SIZE < rows[2]["plan"]["size"]["used"] <= 60_000
    assert "budget" in result.stdout and "0.045 MB" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    page = html.unescape((place / "out" / "report.html").read_text())
    assert 'id="map-bits"' in page and "<td>0.06 MB</td>" in page and "slimrank at 0.045 MB" in page
    result = CliRunner().invoke(app, [*args, "--sizes", "90MB,many"])
    assert isinstance(result.exception, UsageError) and str(result.exception).startswith("--sizes 'many' is not a size")
    result = CliRunner().invoke(app, [*args, "--sizes", "90MB", "--recipes", "slimrank-refined"])
    assert isinstance(result.exception, UsageError) and "refine.distill can't train rounded" in str(result.exception)
    result = CliRunner().invoke(app, [*args, "--sizes", "90MB", "--recipes", "svd,gptq"])
    assert isinstance(result.exception, UsageError) and "none of svd,gptq does" in str(result.exception)
