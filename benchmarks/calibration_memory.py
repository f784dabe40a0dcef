"""Peak memory of calibrating a mixture with layers of a real size, beside what is announced for it.

    python benchmarks/calibration_memory.py --out benchmarks/results/calibration-memory.json

The model is random, of a few blocks of the shape of Qwen3-30B-A3B's with --experts experts, its text the demo's. Each
row is a process of its own, which reads the model from disk a block at a time. What is announced is what run.estimate
counts for the steps of calibration; the peak is without the pages of mapped files, which the system may take back.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import rows
import torch
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

from slimrank import demo
from slimrank.calibrate.evidence import calibrate
from slimrank.model.compressible import Compressible
from slimrank.recipe import load_recipe
from slimrank.run.estimate import in_host
from slimrank.run.job import opened
from slimrank.run.space import Space, largest, resident
from slimrank.runtime.memory import Limits
from slimrank.store.pieces import DiskPieces
from slimrank.store.run import Run
from slimrank.texts.reading import Reading, read_windows


def main() -> None:
    """Measure a row for each recipe, or where --run names a folder, run one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default="svd-llm,slimrank")
    parser.add_argument("--experts", type=rows.count, default=64)
    parser.add_argument("--width", type=rows.count, default=2048)
    parser.add_argument("--inner", type=rows.count, default=768)
    parser.add_argument("--blocks", type=rows.count, default=2)
    parser.add_argument("--samples", type=rows.count, default=16)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--run", nargs=2, metavar=("FOLDER", "RECIPE"), help=argparse.SUPPRESS)
    rows.add_options(parser, out_required=False, jobs=False)
    options = parser.parse_args()
    if options.run:
        run(Path(options.run[0]), options.run[1], options)
        return
    if options.out is None:
        parser.error("give --out")
    names = ("experts", "width", "inner", "blocks", "samples", "window")
    tasks = [{"recipe": recipe} for recipe in options.recipes.split(",")]
    rows.run(options, tasks, measure, {name: getattr(options, name) for name in names})


def measure(options: argparse.Namespace, tasks: list[rows.Task]) -> Iterator[rows.Task]:
    """The rows, each of a process of its own on one model."""
    with tempfile.TemporaryDirectory(prefix="slimrank-memory-") as folder:
        make(Path(folder), options)
        for task in tasks:
            command = [sys.executable, __file__, *sys.argv[1:], "--run", folder, task["recipe"]]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            yield task | json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def make(folder: Path, options: argparse.Namespace) -> None:
    """Write the random model, in bfloat16."""
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL)
    config = Qwen3MoeConfig(
        vocab_size=len(tokenizer), hidden_size=options.width, moe_intermediate_size=options.inner,
        num_hidden_layers=options.blocks, num_experts=options.experts, num_experts_per_tok=8, num_attention_heads=16,
        num_key_value_heads=4, head_dim=128, max_position_embeddings=options.window, tie_word_embeddings=True,
        dtype=torch.bfloat16,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3MoeForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def run(folder: Path, recipe: str, options: argparse.Namespace) -> None:
    """Calibrate for a recipe, and print what was announced and what was used, in MiB."""
    torch.set_num_threads(options.threads)
    loaded, decoder = opened(
        str(folder / "model"), device="cpu", dtype="float32", limits=Limits.of(None, "cpu"), from_disk=True
    )
    chosen, windows = load_recipe(recipe), read_windows(loaded, Reading("demo", options.samples, options.window, 3))
    model = Compressible.of(decoder)
    space = Space(model, windows, chosen)
    steps = [space.calibration(), *([space.gradients()] if chosen.needs.gradients else [])]
    size, what = largest(steps, decoder, pages=False)
    announced = resident()[1] - in_host(decoder) + size
    watched = Peak()
    calibrate(model, windows, chosen.needs, Run(DiskPieces(folder / recipe)))
    used = watched.stop()
    mib = {"announced": round(announced / 2**20), "used": round(used / 2**20)}
    print(json.dumps(mib | {"times": round(used / announced, 3), "largest": what}))


class Peak:
    """The most memory of this process, without mapped files, read a hundred times a second."""

    def __init__(self) -> None:
        self.most, self.going = 0, True
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        process = psutil.Process()
        while self.going:
            info = process.memory_info()
            self.most = max(self.most, info.rss - getattr(info, "shared", 0))
            time.sleep(0.01)

    def stop(self) -> int:
        """Bytes."""
        self.going = False
        self.thread.join()
        return self.most


if __name__ == "__main__":
    main()
