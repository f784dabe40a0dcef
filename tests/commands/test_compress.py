import json

import pytest
from typer.testing import CliRunner

from slimrank.cli import app
from slimrank.errors import UsageError

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
        (["--samples", "256"], "--samples"),
        (["--window", "32"], "--window"),
        (["--seed", "3"], "--seed"),
        (["--set", "form=pivoted"], "--set"),
        (["--refine", "none"], "--refine"),
        (["--no-chat"], "--chat"),
        (["--keep", "0.8", "--special-tokens"], "--keep, --special-tokens"),
    ],
)
def test_what_the_plan_settles_is_refused_beside_it(place, given, named):
    run("plan", "dense", *READ, "--recipe", "svd", "--out", "plan.json")
    with pytest.raises(UsageError, match=f"--plan settles {named} already"):
        run("compress", "dense", "--plan", "plan.json", *given)


@pytest.mark.parametrize("size", ["", "0.4", "0"])
def test_a_memory_that_is_no_size_is_refused(size):
    with pytest.raises(UsageError, match=f"--memory '{size}' is no size"):
        run("compress", "demo", "--memory", size)
