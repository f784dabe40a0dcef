"""A budget of seconds from the call to the checkpoint, with invented times."""

import html
import json

import pytest
import torch
from invented_times import invented
from processes import torchrun
from typer.testing import CliRunner

from slimrank import Plan, compress, load, load_recipe
from slimrank.allocate.stored import Stored
from slimrank.budget.bench import Bench
from slimrank.budget.speeds import Decoding
from slimrank.cli.main import app
from slimrank.errors import UsageError
from slimrank.forms import FORMS, compressed_layers
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.report.run import run_page
from slimrank.rounding.grid import Grid

FEW = {"calibration": "text.txt", "samples": 8, "window": 32}
READ = ["--calibration", "text.txt", "--samples", "8", "--window", "32"]
BESIDE = 500.0


@pytest.fixture(autouse=True)
def times(tmp_path, monkeypatch):
    """A second for every number, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Bench, "measure", lambda bench, run: invented(bench, beside=BESIDE))


def numbers(model):
    """Of all layers in the blocks, which is what they were said to take."""
    layers, blocks = compressed_layers(model), load("dense").model.model.layers
    linears = {n: m for n, m in blocks.named_modules(prefix="model.layers") if isinstance(m, torch.nn.Linear)}
    whole = {name: tuple(module.weight.shape) for name, module in linears.items()}
    return sum(
        FORMS[layers[name]["form"]].count_parameters(*shape, layers[name]) if name in layers else shape[0] * shape[1]
        for name, shape in whole.items()
    )


def test_the_model_is_as_fast_as_was_asked_by_the_times_that_were_measured(place):
    low_rank = ["form=low_rank"]  # whose numbers lie on a line between ranks
    result = compress("dense", speedup=1.5, tokens=32, out="small", settings=low_rank, **FEW)
    time = result.plan.time
    assert 1.5 <= time.speedup < 1.53 and time.asked == 1.5 and (time.tokens, time.dtype) == (32, "bfloat16")
    beside = 2 * BESIDE + 0.25
    assert (
        time.rest == 2 * BESIDE
        and time.heads == {16: 0.25}
        and time.used == pytest.approx(beside + numbers(result.model), rel=1e-9)
    )
    written = Plan.load(place / "small" / "slimrank" / "plan.json")
    assert written.time == time and written.size is None and all(one.bits is None for one in written.linears.values())
    speeds, losses = zip(*time.frontier, strict=True)
    assert list(speeds) == sorted(speeds) and list(losses) == sorted(losses) and speeds[-1] > 1.5
    assert "1.50 times the dense model's speed predicted for a prefill of 32 tokens" in result.summary()["speed"]
    card = (place / "small" / "README.md").read_text()
    assert "predicted speed of a prefill of 32 tokens" in card


def test_a_token_at_a_time_may_be_rounded_on_a_cpu(place):
    plan = compress("dense", speedup=1.2, tokens=1, plan_only=True, **FEW).plan
    widths = {name.split()[2] for name in plan.time.seconds if name.endswith(" 8b") or " 4b" in name}
    assert widths == {"8b", "4b32"} and plan.time.heads.keys() == {16, 8, 4}
    assert any(step.name == "round" for step in plan.recipe.refine)
    assert "decoding a token" in plan.time.sentence()


def test_tokens_are_512_or_the_context_where_that_is_less(place):
    assert compress("dense", speedup=1.2, plan_only=True, **FEW).plan.time.tokens == 128
    with pytest.raises(UsageError, match=r"^--tokens 129 is beyond the model's context of 128"):
        compress("dense", speedup=1.2, tokens=129, **FEW)


def test_a_plan_is_applied_again_edited_and_refused_where_it_is_too_slow(place, monkeypatch):
    plan = compress("dense", speedup=1.5, tokens=32, plan_only=True, **FEW).plan
    monkeypatch.setattr(Bench, "measure", None)  # the plan has its times
    again = compress("dense", plan=plan, calibration="text.txt")
    assert again.plan.time == plan.time
    name, linear = next((n, one) for n, one in plan.linears.items() if one.own_rank and one.own_rank > 2)
    lower = plan.model_copy(update={"linears": plan.linears | {name: linear.model_copy(update={"rank": 2})}})
    edited = compress("dense", plan=lower, calibration="text.txt").plan
    assert edited.linears[name].layer["rank"] == 2 and edited.time.used < plan.time.used
    dense = {n: one.model_copy(update={"rank": None, "unit": None}) for n, one in plan.linears.items()}
    with pytest.raises(UsageError, match=r"1\.000 times as fast as the dense model and its time\.asked is 1\.5: lower"):
        compress("dense", plan=plan.model_copy(update={"linears": dense}), calibration="text.txt")
    foreign = plan.time.model_copy(update={"seconds": {}})
    with pytest.raises(UsageError, match=r"^The plan's time\.seconds has no "):
        compress("dense", plan=plan.model_copy(update={"time": foreign}), calibration="text.txt")


def test_a_stopped_run_goes_on_with_the_times_that_it_began_with(place, monkeypatch):
    whole = compress("dense", speedup=1.5, tokens=32, out="whole", **FEW).plan
    with monkeypatch.context() as patch:
        patch.setattr("slimrank.run.job.allocated", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compress("dense", speedup=1.5, tokens=32, out="out", **FEW)
    (place / "cache" / "slimrank" / "speed.json").unlink()
    monkeypatch.setattr(Bench, "measure", lambda bench, run: invented(bench, beside=3 * BESIDE))
    with pytest.raises(UsageError, match=r"is of a run whose speedup is 1\.5, and this one's is 1\.4"):
        compress("dense", speedup=1.4, tokens=32, out="out", **FEW)
    assert compress("dense", speedup=1.5, tokens=32, out="out", **FEW).plan.time == whole.time
    one, two = ((place / name / "model.safetensors").read_bytes() for name in ("whole", "out"))
    assert one == two


@pytest.mark.slow
def test_several_processes_go_by_the_times_of_the_first(place):
    said = torchrun(place, "compress", "dense", *READ, "--speedup", "1", "--tokens", "32", "--out", "out")
    assert said.returncode == 0, said.stderr
    time = Plan.load(place / "out" / "slimrank" / "plan.json").time
    (machine,) = json.loads((place / "cache" / "slimrank" / "speed.json").read_text())["machines"].items()
    (kept,) = machine[1].values()
    assert time.machine == machine[0] and time.seconds == {k: [tuple(p) for p in v] for k, v in kept["lines"].items()}


def interrupted(*arguments, **options):
    raise KeyboardInterrupt


def test_the_commands_show_speeds_and_the_report_draws_them(place):
    said = CliRunner().invoke(app, ["plan", "dense", *READ, "--speedup", "1.4", "--tokens", "32", "--out", "plan.json"])
    assert said.exit_code == 0, said.output
    assert "speed" in said.output and "1.40 times the dense model's speed predicted" in said.output
    assert json.loads((place / "plan.json").read_text())["time"]["asked"] == 1.4
    run = ["compress", "dense", *READ, "--speedup", "1.4", "--tokens", "32"]
    assert "Written to dense-slimrank-1.4x" in CliRunner().invoke(app, run, catch_exceptions=False).output
    pytest.importorskip("altair")
    page = html.unescape(run_page(place / "dense-slimrank-1.4x"))
    assert 'id="speeds-chart"' in page and "--speedup 1.4 --tokens 32" in page and 'id="sizes-chart"' not in page


def test_sizes_have_speeds_beside_them_once_the_layers_were_timed(place):
    ask = ["plan", "dense", *READ, "--size", "45000", "--out", "plan.json"]
    before = CliRunner().invoke(app, ask, catch_exceptions=False)
    assert "--speedup 1 --tokens 1" in before.output and Plan.load("plan.json").size.speeds == []
    compress("dense", speedup=1.0, tokens=1, plan_only=True, **FEW)
    after = CliRunner().invoke(app, ask, catch_exceptions=False)
    size = Plan.load("plan.json").size
    assert "decoding" in after.output and "--speedup 1" not in after.output
    assert len(size.speeds) == len(size.frontier) > 5 and size.speeds[0] == max(size.speeds) > 1
    assert all(f"{speed:.2f}x" in after.output for speed in size.speeds)


def test_the_speed_of_what_is_stored_follows_from_the_times_that_were_kept(place):
    model, recipe = Compressible(Decoder(load("dense").model)), load_recipe("slimrank")
    assert Decoding.kept(model, recipe, torch.bfloat16) is None
    compress("dense", speedup=1.0, tokens=1, plan_only=True, **FEW)
    known, units = Decoding.kept(model, recipe, torch.bfloat16), list(model.units.values())
    assert known is not None and Decoding.kept(model, recipe, torch.float32) is None
    dense = 2 * BESIDE + 0.25 + sum(unit.parameters for unit in units)  # a second for every number
    assert known.speedup({}, {}) == pytest.approx(1)
    (m, n), rank = units[0].shape, 3
    cut = {units[0]: Stored(rank, Grid(4, 128)), units[1]: Stored(None, Grid(4, 64)), units[2]: Stored()}
    saved = m * n - rank * (m + n)
    assert known.speedup(cut, {}) == pytest.approx(dense / (dense - saved))
    ends = dict.fromkeys(model.ends, 4)
    assert known.speedup(cut, ends) == pytest.approx(dense / (dense - saved - 0.25 * 12 / 16))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speedup": 0.5}, r"^--speedup 0\.5 must be from 1 on"),
        ({"speedup": 0.0}, r"^--speedup 0\.0 must be from 1 on"),
        ({"speedup": -2.0}, r"^--speedup -2\.0 must be"),
        ({"speedup": float("nan")}, "^--speedup nan must be"),
        ({"speedup": float("inf")}, "^--speedup inf must be"),
        ({"speedup": 1.5, "tokens": 0}, "^--tokens 0 is the number of tokens"),
        ({"tokens": 8}, "^--tokens 8 is the number of tokens at once that --speedup"),
        ({"speedup": 1.5, "keep": 0.8}, "^--keep and --speedup are both budgets"),
        ({"speedup": 1.5, "size": "1MB"}, "^--size and --speedup are both budgets"),
        ({"speedup": 1.5, "bits": 4.0}, "^--bits and --speedup are both budgets"),
        ({"speedup": 1.5, "recipe": "svd-llm"}, "allocates by uniform, which spends parameters"),
        ({"speedup": 90.0, "tokens": 32}, r"^--speedup 90 is more than any plan reaches .* fastest possible is \d"),
        (
            {"speedup": 1.5, "tokens": 1, "settings": ["refine=[anchored, distill]"]},
            "refine.distill can't train rounded layers",
        ),
    ],
)
def test_invalid_budgets_are_named(place, options, message):
    with pytest.raises(UsageError, match=message):
        compress("dense", **FEW, **options)
