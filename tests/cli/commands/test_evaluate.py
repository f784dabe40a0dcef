import json

import pytest
from typer.testing import CliRunner

from slimrank.cli.main import app
from slimrank.errors import UsageError


@pytest.mark.parametrize("option", ["--tasks-path", "--limit"])
def test_what_is_for_tasks_is_refused_without_them(option):
    with pytest.raises(UsageError, match=f"{option} needs --tasks"):
        CliRunner().invoke(app, ["evaluate", "demo", option, "3"], catch_exceptions=False)


def test_several_models_are_held_against_the_first_in_80_columns(place):
    args = ["evaluate", "dense", "dense", "--text", "text.txt", "--window", "32", "--max-windows", "8"]
    result = CliRunner().invoke(app, [*args, "--json", "out.json"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "text.txt: 8 windows of 32 tokens, BOS before the text, ± a standard error"
    assert lines[1].split() == ["model", "perplexity", "nats", "lost", "KL"] and max(map(len, lines)) <= 80
    assert lines[3].endswith("+0.0000 ± 0.0000  0.0000 ± 0.0000")
    second = json.loads((place / "out.json").read_text())["models"][1]
    assert second["texts"]["text.txt"]["kl"] == 0 == second["texts"]["text.txt"]["kl_stderr"] and not second["notes"]


def test_one_model_has_nothing_to_be_held_against(place):
    args = ["evaluate", "dense", "--text", "text.txt", "--window", "32", "--max-windows", "8"]
    assert "KL" not in CliRunner().invoke(app, args).stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "BOS before the text"),
        (["--special-tokens", "window"], "BOS before every window"),
        (["--special-tokens", "none"], "no BOS"),
    ],
)
def test_the_table_and_the_json_say_where_special_tokens_stood(place, options, said):
    args = ["evaluate", "dense", "--text", "text.txt", "--window", "32", "--max-windows", "4", "--json", "e.json"]
    result = CliRunner().invoke(app, [*args, *options], catch_exceptions=False)
    assert f"text.txt: 4 windows of 32 tokens, {said}, ± a standard error" in result.output
    (text,) = json.loads((place / "e.json").read_text())["models"][0]["texts"].values()
    assert text["special_tokens"] == (options[1] if options else "text")
