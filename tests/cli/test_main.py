import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from slimrank.cli.main import app
from slimrank.errors import SlimrankError

runner = CliRunner()


def run(*args):
    """The command in this process; slimrank's own errors come through as they are."""
    result = runner.invoke(app, [str(a) for a in args], catch_exceptions=True)
    if isinstance(result.exception, SlimrankError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def shell(*args):
    """The command as a user starts it."""
    command = [sys.executable, "-m", "slimrank.cli.main", *map(str, args)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    return done.returncode, done.stdout, done.stderr


READ = ("--calibration", "text.txt", "--samples", 16, "--window", 32)


def test_compress_plan_evaluate(place):
    said = run("compress", "dense", *READ, "--recipe", "svd-llm", "--keep", 0.6, "--out", "small")
    assert "linears" in said and "peak memory" in said and "Written to small" in said
    said = run("plan", "dense", *READ, "--recipe", "svd-llm", "--keep", 0.6, "--out", "plan.json")
    run("compress", "dense", "--plan", "plan.json", "--out", "again")
    one, two = ((place / d / "model.safetensors").read_bytes() for d in ("small", "again"))
    assert one == two
    run("evaluate", "dense", "small", "--text", "text.txt", "--window", 32, "--max-windows", 8, "--json", "out.json")
    dense, small = json.loads((place / "out.json").read_text())["models"]
    budget = json.loads((place / "plan.json").read_text())["budget"]
    assert (dense["parameters"]["linears"], small["parameters"]["linears"]) == (budget["dense"], budget["used"])
    assert small["bytes"] == (place / "small" / "model.safetensors").stat().st_size < dense["bytes"]
    assert small["texts"]["text.txt"]["nats_lost"] != 0 == dense["texts"]["text.txt"]["nats_lost"]


def test_a_good_result_is_never_overwritten_unasked(place):
    run("compress", "dense", *READ, "--recipe", "svd", "--out", "small")
    before = (place / "small" / "model.safetensors").read_bytes()
    with pytest.raises(SlimrankError, match="not empty"):
        run("compress", "dense", *READ, "--out", "small")
    with pytest.raises(SlimrankError):  # fails after the start
        run("compress", "dense", *READ[:-1], 9999, "--out", "small", "--overwrite")
    assert (place / "small" / "model.safetensors").read_bytes() == before
    run("compress", "dense", *READ, "--recipe", "svd-llm", "--out", "small", "--overwrite")
    assert (place / "small" / "model.safetensors").read_bytes() != before
    assert sorted(p.name for p in place.iterdir()) == ["dense", "small", "text.txt"]


def test_recipes_lists_and_prints(place):
    assert "svd-llm" in run("recipes")
    assert "route: projector" in run("recipes", "svd-llm")


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (("compress", "dense", *READ, "--keep", 1.5), 2, "--keep 1.5 must be above 0"),
        (("compress", "dense", *READ, "--recipe", "nope"), 2, "no recipe 'nope'"),
        (("compress", "nowhere", *READ), 1, "MODEL nowhere cannot be loaded"),
        (("evaluate", "dense", "--text", "missing.txt"), 2, "missing.txt"),
        (("plan", "dense", *READ, "--out", "no/such/plan.json"), 2, "the folder no/such does not exist"),
        (("compress", "dense", "--plan", "text.txt"), 2, "text.txt cannot be read as JSON"),
    ],
)
def test_bad_use_is_one_sentence_and_a_status(place, args, status, message):
    code, out, err = shell(*args)
    assert (code, out) == (status, "")
    assert message in " ".join(err.split()) and err.startswith("error: ") and "Traceback" not in err
    assert sorted(p.name for p in place.iterdir()) == ["dense", "text.txt"]


def test_a_truncated_weight_file_is_one_sentence(place):
    path = place / "dense" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    code, _, err = shell("evaluate", "dense", "--text", "text.txt")
    assert code == 1 and "model.safetensors is truncated or damaged" in err and "Traceback" not in err
