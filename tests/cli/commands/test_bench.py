import json

import pytest
from typer.testing import CliRunner

from slimrank.cli.main import app
from slimrank.errors import UsageError


def test_bench_prints_and_writes(tmp_path):
    options = ["--tokens", "16", "--batches", "1", "--steps", "1", "--rounds", "1", "--dtype", "float32"]
    result = CliRunner().invoke(app, ["bench", "demo", *options, "--json", str(tmp_path / "speed.json")])
    assert result.exit_code == 0, result.output
    assert "decode 1" in result.output and "GB/s" in result.output
    record = json.loads((tmp_path / "speed.json").read_text())
    assert record["settings"]["dtype"] == "float32" and record["models"][0]["name"] == "demo"


def test_a_model_named_twice_is_refused():
    with pytest.raises(UsageError, match="MODEL demo is named twice"):
        CliRunner().invoke(app, ["bench", "demo", "other", "demo"], catch_exceptions=False)
