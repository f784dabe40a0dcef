"""The papers' recipes side by side, and beside what the papers printed where the model is one of theirs.

    python benchmarks/papers.py demo --out FILE --jobs 2
    python benchmarks/papers.py MODEL --calibration train.txt --text wikitext2=test.txt --text c4=c4.jsonl --out FILE
    python benchmarks/papers.py llama-7b --device cuda --dtype bfloat16 --out FILE      # model and texts from the hub

The name of one of the papers' models (--list) brings the papers' settings: 256 windows of 2048 or 4096 tokens of
WikiText-2's training split to calibrate on, seed 3, perplexity of its test split and of C4 in windows of that length.
--model puts a directory in the place of the hub's model, --calibration and --text files in the place of its texts.
"""

import argparse
import gzip
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import recipes as recipe_rows
import rows as rows_of
from huggingface_hub import hf_hub_download

from slimrank.errors import SlimrankError

WIKITEXT = "hub:Salesforce/wikitext/wikitext-2-raw-v1"
DEFAULT = "svd,fwsvd,asvd,svd-llm,svd-llm-update,svd-llm-v2,dipsvd,dipsvd-bo,cpsvd,duo-svd,slimrank"


@dataclass(frozen=True)
class Paper:
    """A model of the papers. printed: by text, recipe (dense too) and keep, the perplexity that a paper states."""

    hub: str
    window: int = 2048
    printed: dict[str, dict[tuple[str, float], float]] = field(default_factory=dict)
    special_tokens: bool = True


PAPERS = {
    "llama-7b": Paper(
        "huggyllama/llama-7b",
        printed={
            "wikitext2": {
                ("dense", 1.0): 5.68, ("svd-llm", 0.8): 7.94, ("svd-llm", 0.6): 13.11, ("svd-llm-v2", 0.8): 7.12,
                ("dipsvd", 0.8): 7.95, ("dipsvd", 0.6): 12.76,
            },
            "ptb": {
                ("svd-llm", 0.8): 16.22, ("svd-llm", 0.6): 63.75, ("dipsvd", 0.8): 15.60, ("dipsvd", 0.6): 46.95,
            },
            "c4": {
                ("dense", 1.0): 7.34, ("svd-llm", 0.8): 15.84, ("svd-llm", 0.6): 49.83, ("svd-llm-v2", 0.8): 10.47,
                ("dipsvd", 0.8): 14.07, ("dipsvd", 0.6): 34.35,
            },
        },
    ),
    "llama-13b": Paper("huggyllama/llama-13b", printed={"wikitext2": {("svd-llm-v2", 0.8): 5.46}}),
    "llama-30b": Paper("huggyllama/llama-30b", printed={"wikitext2": {("svd-llm-v2", 0.8): 4.71}}),
    "llama-3-8b": Paper(
        "meta-llama/Meta-Llama-3-8B",
        printed={"wikitext2": {("svd-llm-v2", 0.8): 8.01}, "c4": {("svd-llm-v2", 0.8): 11.72}},
    ),
    "opt-6.7b": Paper(
        "facebook/opt-6.7b",
        printed={"wikitext2": {("svd-llm-v2", 0.8): 13.46}, "c4": {("svd-llm-v2", 0.8): 17.72}},
    ),
    "llama-2-7b": Paper(
        "meta-llama/Llama-2-7b-hf",
        window=4096,
        printed={"wikitext2": {("dense", 1.0): 5.12, ("svd-llm", 0.8): 7.05, ("duo-svd", 0.8): 5.95}},
    ),
    "mistral-7b": Paper("mistralai/Mistral-7B-v0.1", window=4096, printed={"wikitext2": {("duo-svd", 0.8): 5.81}}),
    "llama-3.1-8b": Paper("meta-llama/Llama-3.1-8B", window=4096, printed={"wikitext2": {("duo-svd", 0.8): 8.68}}),
    "qwen3-8b": Paper("Qwen/Qwen3-8B", window=4096, printed={"wikitext2": {("duo-svd", 0.8): 7.54}}),
}  # fmt: skip


def c4(folder: Path) -> str:
    """The SPEC of the first 1,100 documents of C4's first validation file, which it gets from the hub."""
    path = folder / "c4-validation-1100.jsonl"
    if not path.exists():
        try:
            source = hf_hub_download("allenai/c4", "en/c4-validation.00000-of-00008.json.gz", repo_type="dataset")
        except Exception as error:  # the library raises errors of many unrelated types
            raise SlimrankError(f"C4 cannot be fetched: {' '.join(str(error).split())} Give --text c4=FILE.") from error
        part = path.with_suffix(".part")
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(source, "rt", encoding="utf-8") as lines, part.open("w", encoding="utf-8") as out:
            out.writelines(line for _, line in zip(range(1100), lines, strict=False))
        shutil.move(part, path)
    return str(path)


def prepare(options: argparse.Namespace) -> dict[str, dict[tuple[str, float], float]]:
    """Fill the options that were left out from the model's paper, and return what that printed."""
    paper = PAPERS.get(options.model)
    window, samples, special = (paper.window, 256, paper.special_tokens) if paper else (256, 128, False)
    options.window, options.samples = options.window or window, options.samples or samples
    options.special_tokens = special if options.special_tokens is None else options.special_tokens
    options.max_windows = options.max_windows or (256 if paper else 64)
    if paper:
        options.calibration = options.calibration or [f"{WIKITEXT}:train"]
        given = options.text or [f"wikitext2={WIKITEXT}:test", f"c4={c4(options.out.parent)}"]
    else:
        given = options.text or ["demo=demo"]
    options.texts = dict(text.partition("=")[::2] if "=" in text else (Path(text).stem, text) for text in given)
    options.text = list(options.texts.values())
    options.name, options.model = options.model, options.local or (paper.hub if paper else options.model)
    return paper.printed if paper else {}


def table(
    found: Sequence[dict[str, Any]],
    keeps: Sequence[float],
    texts: dict[str, str],
    printed: dict[str, dict[tuple[str, float], float]],
) -> Iterator[str]:
    """Markdown: a line a recipe, per text and keep our perplexity and, in brackets, the paper's."""
    sources = dict(zip(texts, found[0]["perplexity"], strict=True))
    columns = [(text, keep) for text in texts for keep in keeps]
    yield "| recipe | " + " | ".join(f"{text} {keep:g}" for text, keep in columns) + " | seconds |"
    yield "|---" * (len(columns) + 2) + "|"
    for name in dict.fromkeys(row["recipe"] for row in found):
        own = [row for row in found if row["recipe"] == name]
        cells = []
        for text, keep in columns:
            theirs = printed.get(text, {}).get((name, keep))
            ours = recipe_rows.cell([row["perplexity"][sources[text]] for row in own if row["keep"] == keep])
            cells.append(ours + (f" ({theirs:g})" if theirs else ""))
        yield f"| {name} | " + " | ".join(cells) + f" | {sum(row['seconds'] for row in own) / len(own):.0f} |"


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="demo, a directory, a hub id, or the name of a paper's model")
    parser.add_argument("--model", dest="local", help="where that model is, if not on the hub")
    parser.add_argument("--list", action="store_true", help="print the papers' models and stop")
    recipe_rows.add_options(parser, out_required=False)
    parser.set_defaults(
        recipes=recipe_rows.names(DEFAULT), keeps=[0.8, 0.6, 0.4], samples=None, window=None, max_windows=None,
        special_tokens=None,
    )  # fmt: skip
    options = parser.parse_args()
    if options.list:
        for name, paper in PAPERS.items():
            print(f"{name}: {paper.hub}, windows of {paper.window}")
        return
    if options.model is None or options.out is None:
        parser.error("give a model and --out, or --list")
    with rows_of.one_sentence():
        printed = prepare(options)
        for name in options.recipes:
            recipe_rows.recipe(options, name)
        settings = {"name": options.name} | recipe_rows.settings(options)
        found = rows_of.run(options, recipe_rows.tasks(options), recipe_rows.measure, settings)
    found.sort(key=lambda row: options.recipes.index(row["recipe"]))
    dense = {text: figures.get(("dense", 1.0)) for text, figures in printed.items()}
    print("\n".join(table(found, options.keeps, options.texts, printed)))
    for text, source in zip(options.texts, found[0]["perplexity"], strict=True):
        paper = f" (paper {dense[text]:g})" if dense.get(text) else ""
        print(f"dense on {text}: {recipe_rows.dense_perplexity(found[0], source):.2f}{paper}", file=sys.stdout)


if __name__ == "__main__":
    main()
