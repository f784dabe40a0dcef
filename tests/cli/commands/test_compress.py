import html
import json
import re
import shlex

import pytest
from typer.testing import CliRunner

from slimrank.cli.main import app
from slimrank.errors import UsageError
from slimrank.run import compress as compression

READ = ["--calibration", "text.txt", "--samples", "8", "--window", "32"]


def run(*args):
    """The command's outcome; its errors come through as they are."""
    return CliRunner().invoke(app, args, catch_exceptions=False)


def test_the_folder_is_named_after_the_model_and_the_plans_recipe_and_keep(place, monkeypatch):
    run("plan", "dense", *READ, "--recipe", "svd-llm", "--keep", "0.6", "--out", "plan.json")
    monkeypatch.chdir(place / "dense")
    said = run("compress", ".", "--plan", "../plan.json", "--calibration", "../text.txt").output
    assert "Written to dense-svd-llm-0.6" in said
    plan = json.loads((place / "dense" / "dense-svd-llm-0.6" / "slimrank" / "plan.json").read_text())
    assert plan["keep"] == 0.6


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["--recipe", "svd"], "--recipe"),
        (["--keep", "0.8"], "--keep"),
        (["--speedup", "1.5", "--tokens", "1"], "--speedup, --tokens"),
        (["--samples", "256"], "--samples"),
        (["--window", "32"], "--window"),
        (["--seed", "3"], "--seed"),
        (["--set", "form=pivoted"], "--set"),
        (["--refine", "none"], "--refine"),
        (["--no-chat"], "--chat"),
        (["--only", "*.mlp.*"], "--only"),
        (["--skip", "*.mlp.*"], "--skip"),
        (["--keep", "0.8", "--special-tokens", "none"], "--keep, --special-tokens"),
    ],
)
def test_what_the_plan_settles_is_refused_beside_it(place, given, named):
    run("plan", "dense", *READ, "--recipe", "svd", "--out", "plan.json")
    with pytest.raises(UsageError, match=f"--plan already sets {named}: leave out"):
        run("compress", "dense", "--plan", "plan.json", *given)


@pytest.mark.parametrize("size", ["", "0.4", "0"])
def test_a_memory_that_is_no_size_is_refused(size):
    with pytest.raises(UsageError, match=f"--memory '{size}' is not a size"):
        run("compress", "demo", "--memory", size)


def test_several_calibration_texts_are_planned_applied_and_resumed(place, make_text):
    (place / "other.txt").write_text(make_text(4000, seed=1))
    mix = ["--calibration", "text.txt*0.25", "--calibration", "other.txt", "--samples", "8", "--window", "32"]
    run("plan", "dense", *mix, "--recipe", "svd-llm", "--keep", "0.6", "--out", "plan.json")
    record = json.loads((place / "plan.json").read_text())["calibration"]
    assert [(text["source"], text["share"]) for text in record["texts"]] == [("text.txt", 0.25), ("other.txt", 0.75)]
    said = run("compress", "dense", "--plan", "plan.json", "--out", "one").output
    assert "source text.txt (0.25), other.txt (0.75)" in said and "texts" not in said
    run("compress", "dense", *mix, "--recipe", "svd-llm", "--keep", "0.6", "--out", "two")
    one, two = ((place / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    page = html.unescape((place / "one" / "slimrank" / "report.html").read_text())
    again = ["--calibration", "text.txt*0.25", "--calibration", "other.txt*0.75"]
    commands = [shlex.split(c) for c in re.findall(r'<pre class="command">(.*?)</pre>', page, re.DOTALL)]
    assert [command[-8:-4] for command in commands] == [again, again]
    (place / "other.txt").write_text(make_text(4000, seed=2))
    with pytest.raises(UsageError, match=r"other\.txt is not the text that the plan was made with"):
        run("compress", "dense", "--plan", "plan.json", "--out", "three")


@pytest.mark.parametrize("change", ["text", "share", "order", "fewer"])
def test_progress_is_of_all_calibration_texts_and_their_shares(place, make_text, monkeypatch, change):
    (place / "other.txt").write_text(make_text(4000, seed=1))
    args = ["compress", "dense", "--recipe", "svd-llm", "--samples", "8", "--window", "32", "--out", "out"]
    mix = ["--calibration", "text.txt", "--calibration", "other.txt"]
    with monkeypatch.context() as patch:
        patch.setattr("slimrank.run.job.factorize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compression.compress("dense", "svd-llm", calibration=mix[1::2], samples=8, window=32, out="out")
    if change == "text":
        (place / "other.txt").write_text(make_text(4000, seed=2))
    mix = {"share": [*mix[:3], "other.txt*0.25"], "order": mix[2:] + mix[:2], "fewer": mix[:2]}.get(change, mix)
    with pytest.raises(UsageError, match=r"is of a run whose calibration\.(source|sha256|texts)"):
        run(*args, *mix)


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", ["compress", "plan", "compare"])
def test_bad_shares_are_refused(place, command):
    more = {"compress": [], "plan": ["--out", "plan.json"], "compare": ["--recipes", "svd", "--text", "text.txt"]}
    shares = ["--calibration", "text.txt*0.5", "--calibration", "other.txt*0.4"]
    with pytest.raises(UsageError, match=r"^The shares of --calibration add up to 0\.9: make them 1, or leave one"):
        run(command, "dense", *shares, "--window", "32", *more[command])
