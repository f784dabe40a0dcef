"""Every command and snippet of the README and the docs runs; those that can't say why, in a comment before them."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from slimrank.cli.main import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>[^>]*) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```\n", re.DOTALL)
SHOWN = {"text", "json", "yaml"}  # what is only looked at
REASONS = {
    "installs",
    "changes the shell's start-up file",
    "needs a model from the hub",
    "needs an account at the hub",
    "needs a model and texts of your own",
    "needs data sets from the hub",
    "needs several devices",
    "needs local copies of the sets",
    "needs a GPU",
    "needs vLLM",
    "takes minutes",
    "takes minutes, and installs",
}


def blocks(page):
    """(kind, text, why it is not run) of every fenced block."""
    return [(m["kind"], m["text"], m["why"]) for m in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def commands(text):
    return [line.partition("  # ")[0] for line in text.replace("\\\n", " ").splitlines() if line.strip()]


@pytest.fixture
def readers_files(tiny_llama, tiny_tokenizer, make_text, tmp_path, monkeypatch):
    """A folder to work in, with what the pages take for the reader's own model and texts."""
    from tiny_gguf import write_gguf

    monkeypatch.chdir(tmp_path)
    config = {"hidden_size": 64, "intermediate_size": 96, "max_position_embeddings": 96}  # so is the default window
    model = tiny_llama(**config, vocab_size=len(tiny_tokenizer)).to(torch.bfloat16)
    model.save_pretrained("my-model")
    tiny_tokenizer.save_pretrained("my-model")
    write_gguf(tmp_path / "my-model.gguf", model, tiny_tokenizer)
    Path("mine.txt").write_text(make_text(30_000, seed=1))
    Path("held-out.txt").write_text(make_text(4_000, seed=2))
    Path("chat.jsonl").write_text("".join(json.dumps({"text": make_text(40, seed=n)}) + "\n" for n in range(500)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_runs_from_top_to_bottom(page, readers_files):
    names = {}
    for kind, text, why in blocks(page):
        if why or kind in SHOWN:
            continue
        if kind == "python":
            exec(compile(text, page.name, "exec"), names)
            continue
        assert kind == "sh", f"{page.name}: a block of {kind!r} is neither run nor marked"
        for command in commands(text):
            program, *args = shlex.split(command)
            assert program == "slimrank", f"{page.name}: {command!r} is neither run nor marked"
            result = CliRunner().invoke(app, args)
            assert result.exit_code == 0, f"{command}: {result.output} {result.exception}"


def test_what_is_not_run_says_why_and_every_block_is_fenced():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert {why for _, _, why in blocks(page) if why} <= REASONS
        assert text.count("```") == 2 * len(blocks(page))
        assert not re.search(r"^ {4}(slimrank|make|pip) ", text, re.MULTILINE), f"{page.name}: an indented command"


def test_every_page_is_in_the_site_and_every_recipe_in_its_table():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(page.name in site for page in PAGES[1:])
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    missing = [p.stem for p in (ROOT / "src" / "slimrank" / "recipes").glob("*.yaml") if f"`{p.stem}`" not in methods]
    assert missing == []
