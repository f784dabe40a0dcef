import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from slimrank import compress, load
from slimrank.cli.main import app
from slimrank.errors import UsageError
from slimrank.model.globs import Globs

READ = ["--calibration", "text.txt", "--samples", "8", "--window", "32", "--recipe", "svd-llm", "--keep", "0.6"]
OPTIONS = {"calibration": "text.txt", "samples": 8, "window": 32, "keep": 0.6}


def planned(*options):
    assert CliRunner().invoke(app, ["plan", "dense", *READ, *options, "--out", "p.json"], catch_exceptions=False)
    return list(json.loads(Path("p.json").read_text())["linears"])


def test_only_and_skip_choose_the_linears_that_filter_does(place):
    only = planned("--only", "*.mlp.*", "--only", "*.1.self_attn.q_proj", "--skip", "*.down_proj")
    mine = compress(
        load("dense"), "svd-llm", plan_only=True, **OPTIONS,
        filter=lambda name, _: ("mlp" in name and "down" not in name) or name == "model.layers.1.self_attn.q_proj",
    )  # fmt: skip
    assert only == list(mine.plan.linears) and len(only) == 5
    assert len(planned("--skip", "model.layers.0.*")) == 7


@pytest.mark.parametrize(("option", "value"), [("only", "*.MLP.*"), ("skip", "mlp")])
def test_a_glob_that_matches_nothing_is_refused(place, option, value):
    with pytest.raises(UsageError, match=rf"--{option} '.*' matches the name of no linear in the decoder blocks"):
        compress(load("dense"), "svd-llm", **OPTIONS, filter=Globs(**{option: ["*.q_proj", value]}))


def test_compress_leaves_the_others_dense(place):
    result = CliRunner().invoke(app, ["compress", "dense", *READ, "--skip", "*.mlp.*", "--out", "small"])
    assert result.exit_code == 0, result.output
    config = json.loads((place / "small" / "config.json").read_text())
    assert config["quantization_config"]["layers"] and not any(
        "mlp" in n for n in config["quantization_config"]["layers"]
    )
