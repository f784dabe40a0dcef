"""benchmarks/papers.py by the hub's road: a paper's model and texts from a hub that runs on this machine."""

import gzip
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub import serving

import slimrank

pytest.importorskip("datasets")
pytestmark = pytest.mark.timeout(600)  # processes of their own, which busy machines are slow to start
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "papers.py"
CARD = """---
configs:
- config_name: wikitext-103-raw-v1
  data_files: [{split: train, path: wikitext-103-raw-v1/train-*}]
- config_name: wikitext-2-raw-v1
  data_files:
  - {split: test, path: wikitext-2-raw-v1/test-*}
  - {split: train, path: wikitext-2-raw-v1/train-*}
---
"""


@pytest.fixture(scope="module")
def hub(tiny_llama, module_tokenizer, make_text, tmp_path_factory):
    """A folder for `serving`, and the rows of each text in it."""
    root = tmp_path_factory.mktemp("hub")
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = tiny_llama(max_position_embeddings=2048, **shape)
    for saved in (model, module_tokenizer):
        saved.save_pretrained(root / "models" / "huggyllama" / "llama-7b")
    rows = {name: paragraphs(make_text(size, seed)) for name, size, seed in (("train", 250_000, 1), ("test", 4000, 2))}
    wikitext = root / "datasets" / "Salesforce" / "wikitext"
    write_parquet(wikitext / "wikitext-103-raw-v1" / "train-00000-of-00001.parquet", ["another"])
    for split, texts in rows.items():
        write_parquet(wikitext / "wikitext-2-raw-v1" / f"{split}-00000-of-00001.parquet", texts)
    (wikitext / "README.md").write_text(CARD)
    rows["c4"] = [make_text(8, seed) for seed in range(1100)]
    c4 = root / "datasets" / "allenai" / "c4" / "en" / "c4-validation.00000-of-00008.json.gz"
    c4.parent.mkdir(parents=True)
    with gzip.open(c4, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text, "url": "x"}) + "\n" for text in [*rows["c4"], "one too many"])
    return root, model, module_tokenizer, rows


def paragraphs(text: str) -> list[str]:
    """Rows as WikiText has them, with empty ones between."""
    return [row for line in text.splitlines() for row in (f" {line} \n", "")]


def write_parquet(path: Path, texts: list[str]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)


def python(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **environment, "PYTHONPATH": str(SCRIPT.parents[1] / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=500)


def described(name: str, rows: list[str]) -> str:
    text = "\n\n".join(rows)
    return f"{name}: {len(text)} characters, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"


@torch.no_grad()
def dense_perplexity(model, tokenizer, rows: list[str]) -> float:
    """As the literature counts it, computed by itself."""
    ids = tokenizer("\n\n".join(rows), return_tensors="pt").input_ids[0]
    windows = ids[: len(ids) // 2048 * 2048].view(-1, 2048)
    assert ids[0] == tokenizer.bos_token_id and len(windows) >= 2
    return math.exp(sum(model(input_ids=one[None], labels=one[None]).loss.item() for one in windows) / len(windows))


def test_a_papers_model_and_texts_come_from_the_hub_with_the_papers_settings(hub, tmp_path):
    root, model, tokenizer, rows = hub
    out = tmp_path / "rows.json"
    with serving(root) as environment:
        done = python(environment, str(SCRIPT), "llama-7b", "--recipes", "svd-llm", "--keeps", "0.8", "--out", str(out))
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    settings = content["settings"]
    assert settings["model"] == "huggyllama/llama-7b"
    assert settings["calibration"] == described("wikitext-2-raw-v1:train", rows["train"])
    assert settings["texts"] == [
        described("wikitext-2-raw-v1:test", rows["test"]),
        described("c4-validation-1100.jsonl", rows["c4"]),
    ]
    assert (settings["samples"], settings["window"], settings["special_tokens"]) == (256, 2048, True)
    (row,) = content["rows"]
    assert (row["recipe"], row["keep"], row["seed"]) == ("svd-llm", 0.8, 3)
    printed = dict(zip(("wikitext2", "c4"), ("7.94", "15.84"), strict=True))
    for (label, theirs), (text, ours), name in zip(
        printed.items(), row["perplexity"].items(), ("test", "c4"), strict=True
    ):
        dense = math.exp(math.log(ours) - row["nats_lost"][text])
        assert dense == pytest.approx(dense_perplexity(model, tokenizer, rows[name]), rel=1e-4)
        assert f"dense on {label}: {dense:.2f} (paper " in done.stdout
        assert f"{ours:.2f} ({theirs})" in done.stdout


def test_a_model_from_the_hub_becomes_the_checkpoint_that_its_files_give(hub, tmp_path):
    root, _, _, rows = hub
    spec, out = "hub:Salesforce/wikitext/wikitext-2-raw-v1:train", tmp_path / "from-hub"
    options = ["--recipe", "svd-llm", "--keep", "0.8", "--samples", "8", "--window", "64", "--out", str(out)]
    with serving(root) as environment:
        done = python(environment, "-m", "slimrank", "compress", "huggyllama/llama-7b", "--calibration", spec, *options)
    assert done.returncode == 0, done.stderr
    text = tmp_path / "train.txt"
    text.write_text("\n\n".join(rows["train"]))
    files = str(root / "models" / "huggyllama" / "llama-7b")
    slimrank.compress(files, "svd-llm", keep=0.8, calibration=str(text), samples=8, window=64).save(tmp_path / "local")
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "local" / "model.safetensors").read_bytes()
