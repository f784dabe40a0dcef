import json

import pytest
import torch
from architectures import build, mixtures
from made_up import BENCH, EVALUATION
from typer.testing import CliRunner

from slimrank import compress
from slimrank.cli.main import app
from slimrank.forms.experts import layout_of


@pytest.fixture(scope="module")
def run_folder(tiny_llama, tmp_path_factory, make_text, module_tokenizer):
    """A checkpoint that compress wrote, without its page."""
    place = tmp_path_factory.mktemp("run")
    tiny_llama().to(torch.bfloat16).save_pretrained(place / "dense")
    module_tokenizer.save_pretrained(place / "dense")
    (place / "text.txt").write_text(make_text(3000))
    options = {"calibration": str(place / "text.txt"), "samples": 8, "window": 32}
    compress(str(place / "dense"), "svd-llm", keep=0.6, **options).save(place / "small")
    return place / "small"


@pytest.fixture(scope="module")
def mixture_folder(tmp_path_factory, make_text, module_tokenizer):
    """A checkpoint that compress wrote of a mixture of 4 experts in each of 2 blocks, without its page."""
    config = mixtures()["Qwen3Moe"]
    model = build(type(config)(**config.to_dict() | {"vocab_size": 320}))
    if not any(layout_of(module) for module in model.modules()):
        pytest.skip("transformers 4 has lists of linears")
    place = tmp_path_factory.mktemp("mixture")
    model.save_pretrained(place / "dense")
    module_tokenizer.save_pretrained(place / "dense")
    (place / "text.txt").write_text(make_text(3000))
    options = {"calibration": str(place / "text.txt"), "samples": 8, "window": 32}
    compress(str(place / "dense"), "slimrank", keep=0.4, **options).save(place / "small")
    return place / "small"


@pytest.fixture(scope="module")
def comparison_folder(run_folder):
    """What compare --out wrote, on the same model."""
    out, text = run_folder.parent / "compared", str(run_folder.parent / "text.txt")
    args = ["compare", str(run_folder.parent / "dense"), "--recipes", "svd,svd-llm", "--keep", "0.6,0.4"]
    args += ["--calibration", text, "--text", text, "--samples", "8", "--window", "32", "--max-windows", "4"]
    result = CliRunner().invoke(app, [*args, "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def measured(run_folder):
    """The files of evaluate --json and bench --json, with made-up numbers."""
    files = run_folder.parent / "evaluation.json", run_folder.parent / "bench.json"
    for file, content in zip(files, (EVALUATION, BENCH), strict=True):
        file.write_text(json.dumps(content))
    return files
