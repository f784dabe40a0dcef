"""Damaged inputs end in one sentence, soon, and leave nothing half written."""

import json
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import fuzz
import pyarrow.parquet
import pytest
import torch
import yaml
from made_up import BENCH, EVALUATION
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from slimrank import compress
from slimrank.calibrate import read_text
from slimrank.cli.main import app, main
from slimrank.errors import SlimrankError
from slimrank.model.load import load
from slimrank.plan import Plan
from slimrank.recipe import load_recipe, shipped_recipes
from slimrank.report import write_report

SECONDS = 30
READ = {"samples": 2, "window": 16}


@pytest.fixture(scope="module")
def given(tiny_llama, module_tokenizer, make_text, tmp_path_factory) -> Path:
    """A folder with a dense model in one file and in several, its text, plan and compressed model."""
    place = tmp_path_factory.mktemp("given")
    model = tiny_llama(hidden_size=16, intermediate_size=24, vocab_size=320).to(torch.bfloat16)
    for name, size in (("dense", "5GB"), ("sharded", "20KB")):
        model.save_pretrained(place / name, max_shard_size=size)
        module_tokenizer.save_pretrained(place / name)
    (place / "text.txt").write_text(make_text(1500))
    rows = make_text(600).split("\n")
    (place / "text.jsonl").write_text("\n".join(json.dumps({"text": row, "id": 1}) for row in rows))
    done = compress(str(place / "dense"), "svd", keep=0.6, calibration=str(place / "text.txt"), **READ)
    done.save(place / "small")
    table = pyarrow.table({"text": rows, "id": list(range(len(rows)))})
    pyarrow.parquet.write_table(table, place / "text.parquet")
    (place / "evaluation.json").write_text(json.dumps(EVALUATION))
    (place / "bench.json").write_text(json.dumps(BENCH))
    asked = ["--recipes", "svd", "--keep", "0.6", "--samples", "2", "--window", "16", "--max-windows", "2"]
    texts = [f"--{kind}={place / 'text.txt'}" for kind in ("calibration", "text")]
    arguments = ["compare", str(place / "dense"), *asked, *texts, "--out", str(place / "compared")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return place


def reduce(folder: Path, given: Path, **more) -> None:
    """The whole of a compression of the model in `folder`."""
    options = {"recipe": "svd", "keep": 0.6, "calibration": str(given / "text.txt"), **READ, **more}
    compress(str(folder), out=str(folder.parent / "out"), **options)
    written = AutoModelForCausalLM.from_pretrained(folder.parent / "out", dtype=torch.float32)
    same_logits(written, compress(str(folder), **options).model)


@torch.no_grad()
def same_logits(written, computed) -> None:
    """The checkpoint is what was computed, but for the weights' rounding to bfloat16."""
    ids = torch.arange(8)[None]
    found, expected = (model.eval()(ids).logits for model in (written, computed))
    assert (found - expected).square().mean().sqrt() <= 0.1 * expected.std()


def in_model(name: str, model: str, damage: Callable = fuzz.damaged, use: Callable = reduce):
    """A case that damages one file of a model and then uses it."""

    def case(rng: random.Random, given: Path, place: Path) -> None:
        shutil.copytree(given / model, place / "model")
        path = place / "model" / name
        path.write_bytes(damage(path.read_bytes(), rng))
        use(place / "model", given)

    return case


def read_model(folder: Path, _: Path) -> None:
    load(str(folder)).model(torch.arange(8)[None])


def file_set(rng: random.Random, given: Path, place: Path) -> None:
    """A folder of the model, with files lost, cut off, swapped, and strangers among them."""
    shutil.copytree(given / rng.choice(("dense", "sharded")), place / "model")
    fuzz.damage_files(place / "model", rng)
    reduce(place / "model", given)


def arguments(rng: random.Random, given: Path, place: Path) -> None:
    """What Python callers may give, of wrong types too; relative paths lie in the case's folder."""
    options = {"recipe": "svd", "keep": 0.6, "calibration": str(given / "text.txt"), **READ}
    with chdir(place):
        compress(str(given / "dense"), **fuzz.arguments(rng, options))


def command_line(rng: random.Random, given: Path, place: Path) -> None:
    """The same as options of a command."""
    options = {"recipe": "svd", "keep": 0.6, "calibration": str(given / "text.txt"), **READ, "out": "out"}
    words = ["slimrank", "compress", str(given / "dense")]
    for key, value in fuzz.arguments(rng, options).items():
        if key not in ("filter", "settings", "overwrite", "resume", "chat"):
            words += [f"--{key.replace('_', '-')}", str(value)]
    with chdir(place), pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr("sys.argv", words)
        main()
    if ended.value.code:
        assert ended.value.code in (1, 2), words
        raise SlimrankError("refused")


def plan(rng: random.Random, given: Path, place: Path) -> None:
    (place / "plan.json").write_bytes(fuzz.damaged((given / "small/slimrank/plan.json").read_bytes(), rng))
    shutil.copytree(given / "dense", place / "model")
    reduce(place / "model", given, plan=Plan.load(place / "plan.json"))


def recipe(rng: random.Random, given: Path, place: Path) -> None:
    content = rng.choice(list(shipped_recipes().values())).read_bytes()
    if rng.random() < 0.7:
        content = yaml.safe_dump(fuzz.damaged_document(yaml.safe_load(content), rng)).encode()
    else:
        content = fuzz.damaged_bytes(content, rng)
    (place / "recipe.yaml").write_bytes(content)
    load_recipe(place / "recipe.yaml").to_yaml()


def setting(rng: random.Random, given: Path, place: Path) -> None:
    key = rng.choice(("metric", "allocate.name", "form.multiple", "refine", "refine.0", "", "a.b", "metric.name.x"))
    nasty = json.dumps(rng.choice(fuzz.NASTY))
    value = rng.choice(("[", "{}", "null", "[{name: anchored, mix: x}]", "!!python/object:os.system {}", nasty))
    load_recipe(rng.choice(list(shipped_recipes())), [f"{key}={value}"]).to_yaml()


def jsonl(rng: random.Random, given: Path, place: Path) -> None:
    content = (given / "text.jsonl").read_bytes()
    if rng.random() < 0.5:
        rows = content.split(b"\n")
        index = rng.randrange(len(rows))
        rows[index] = fuzz.damaged(rows[index], rng)
        content = b"\n".join(rows)
    else:
        content = fuzz.damaged_bytes(content, rng)
    (place / "text.jsonl").write_bytes(content)
    read_text(str(place / "text.jsonl"))


def parquet(rng: random.Random, given: Path, place: Path) -> None:
    (place / "text.parquet").write_bytes(fuzz.damaged_bytes((given / "text.parquet").read_bytes(), rng))
    read_text(str(place / "text.parquet"))


def report(rng: random.Random, given: Path, place: Path) -> None:
    """The page of a run, one of the four files that it is made from being damaged."""
    shutil.copytree(given / "small", place / "small")
    files = {name: place / f"{name}.json" for name in ("evaluation", "bench")}
    for name, path in files.items():
        shutil.copyfile(given / f"{name}.json", path)
    folder = place / "small/slimrank"
    path = rng.choice([*files.values(), folder / "plan.json", folder / "account.json"])
    path.write_bytes(fuzz.damaged(path.read_bytes(), rng))
    write_report(place / "small", **files)


def compared(rng: random.Random, given: Path, place: Path) -> None:
    (place / "compared").mkdir()
    content = fuzz.damaged((given / "compared/compare.json").read_bytes(), rng)
    (place / "compared/compare.json").write_bytes(content)
    write_report(place / "compared")


CASES: dict[str, Callable[[random.Random, Path, Path], None]] = {
    "config": in_model("config.json", "dense"),
    "config keys": in_model("config.json", "dense", fuzz.damaged_config),
    "file set": file_set,
    "arguments": arguments,
    "command line": command_line,
    "generation config": in_model("generation_config.json", "dense"),
    "compressed config": in_model("config.json", "small", use=read_model),
    "checksums": in_model("slimrank/checksums.json", "small", use=read_model),
    "safetensors": in_model("model.safetensors", "dense", fuzz.damaged_safetensors),
    "index": in_model("model.safetensors.index.json", "sharded"),
    "tokenizer": in_model("tokenizer.json", "dense"),
    "tokenizer config": in_model("tokenizer_config.json", "dense"),
    "plan": plan,
    "recipe": recipe,
    "setting": setting,
    "jsonl": jsonl,
    "parquet": parquet,
    "report": report,
    "compared": compared,
}


def outcome(name: str, seed: int, given: Path, place: Path) -> str:
    """What became of a case; fails where it ends otherwise than well or with a sentence."""
    shutil.rmtree(place, ignore_errors=True)
    (place / "inside").mkdir(parents=True)

    def late(*_) -> None:
        raise AssertionError(f"{name} {seed} hangs")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        CASES[name](random.Random(f"{name} {seed}"), given, place / "inside")
    except SlimrankError as error:
        assert str(error) and "\n" not in str(error), (name, seed, str(error))
        assert not (place / "inside/out").exists(), (name, seed)
        found = "refused"
    else:
        found = "accepted"
    finally:
        signal.alarm(0)
    hidden = {path.name for path in (place / "inside").iterdir() if path.name.startswith(".")}
    assert hidden <= {".out.progress"} and [path.name for path in place.iterdir()] == ["inside"], (name, seed, hidden)
    return found


def check(name: str, count: int, given: Path, tmp_path: Path) -> Counter:
    found: Counter = Counter()
    for seed in range(count):
        found[outcome(name, seed, given, tmp_path / "case")] += 1
    return found


@pytest.mark.parametrize("name", CASES)
def test_damaged_inputs_end_in_a_sentence(name, given, tmp_path):
    found = check(name, 25, given, tmp_path)
    assert found["refused"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_many_damaged_inputs_end_in_a_sentence(name, given, tmp_path, record_property):
    record_property("cases", dict(check(name, 105, given, tmp_path)))
