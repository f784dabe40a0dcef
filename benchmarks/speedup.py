"""What `--speedup` asks, predicts and gives: models compressed for a speed, then timed beside the dense one in turns.

    python benchmarks/speedup.py random --speedups 1.5 --tokens 512,1 --threads 2 --out benchmarks/results/speedup.json

MODEL is a folder, or `random`: serving.py's shape of 1.45 billion parameters (hidden 2048, ffn 5632) with --blocks
blocks and a small vocabulary, whose nats mean nothing. A row a model, speed and number of tokens: 1 is decoding after a
prompt of one token, more is a prefill. Models are timed as transformers loads them and as slimrank.optimize leaves
them, all four in one run and by the clock that layers are timed by: with one thread that is the process's own time,
with more the wall's, which wants a quiet machine. The load is that of the machine's last minute before.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import rows
import torch
from random_forms import random_llama
from tiny_tokenizer import make_tokenizer, words

import slimrank
from slimrank.errors import UsageError
from slimrank.evaluate.decoding import decoder, prefill, prompt
from slimrank.evaluate.layers import clock_of, in_turns
from slimrank.serve.optimize import optimize

SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32, "max_position_embeddings": 4096}


def made(options: argparse.Namespace, place: Path) -> Path:
    """The dense model's folder."""
    if options.model != "random":
        return Path(options.model)
    model = random_llama("dense", 1.0, torch.bfloat16, num_hidden_layers=options.blocks, vocab_size=2048, **SHAPE)
    model.save_pretrained(place / "random")
    make_tokenizer().save_pretrained(place / "random")
    return place / "random"


def timed(dense: Path, small: Path, tokens: int) -> dict[str, float]:
    """Seconds of both models, plain and optimized, in turns."""
    folders = {"dense": dense, "small": small}
    models = {name: slimrank.load(str(folder), dtype="bfloat16").model for name, folder in folders.items()}
    models |= {
        f"{name} optimized": optimize(slimrank.load(str(folder), dtype="bfloat16").model)
        for name, folder in folders.items()
    }
    with torch.inference_mode():
        calls = {name: [call_of(model, tokens)] for name, model in models.items()}
    return in_turns(calls, clock=clock_of(torch.device("cpu")))


def call_of(model: Any, tokens: int) -> Callable[[], object]:
    """A prefill, or decoding one token after another."""
    return decoder(model, 1, 1, 99) if tokens == 1 else partial(prefill, model, prompt(model, tokens))


def row_of(task: rows.Task, options: argparse.Namespace, dense: Path, place: Path) -> dict[str, Any]:
    """One row, or why there is no plan."""
    tokens, started = task["tokens"], time.perf_counter()
    load = round(os.getloadavg()[0], 2)
    out = place / f"{task['speedup']:g}-{tokens}"
    text = options.calibration or [words(20000)]
    try:
        result = slimrank.compress(
            str(dense), settings=options.set, speedup=task["speedup"], tokens=tokens, calibration=text,
            samples=options.samples, window=options.window, out=out,
        )  # fmt: skip
    except UsageError as error:
        return task | {"refused": str(error)}
    planned, seconds = result.plan.time, time.perf_counter() - started
    assert planned is not None, "the budget is one of seconds"
    measured = timed(dense, out, tokens)
    return task | {
        "predicted": round(planned.speedup, 3),
        "measured": round(measured["dense"] / measured["small"], 3),
        "measured_optimized": round(measured["dense optimized"] / measured["small optimized"], 3),
        "predicted_ms": [round(1000 * own, 2) for own in (planned.dense, planned.used)],
        "beside_linears_ms": round(1000 * planned.rest, 2),
        "measured_ms": [round(1000 * measured[name], 2) for name in ("dense", "small")],
        "optimized_ms": [round(1000 * measured[f"{name} optimized"], 2) for name in ("dense", "small")],
        "nats": float(f"{result.plan.predicted:.4g}"),
        "linears": round(result.plan.budget.used / result.plan.budget.dense, 4),
        "layers_timed": sum(map(len, planned.seconds.values())),
        "seconds": round(seconds, 1),
        "load": load,
    }


def measure(options: argparse.Namespace, todo: list[rows.Task]) -> Iterator[dict[str, Any]]:
    """A row a task."""
    with tempfile.TemporaryDirectory() as folder:
        dense = made(options, Path(folder))
        for task in todo:
            yield row_of(task, options, dense, Path(folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows.add_options(parser, jobs=False)
    rows.add_calibration(parser, "calibration text; by default random words")
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--speedups", default="1.5")
    parser.add_argument("--tokens", default="512,1")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--window", type=int, default=128)
    options = parser.parse_args()
    torch.manual_seed(0)
    name = rows.named(options.model)
    shape = {"blocks": options.blocks} if name == "random" else {}
    tasks = [
        {"model": name, **shape, "set": options.set, "speedup": float(speedup), "tokens": int(tokens)}
        for speedup in options.speedups.split(",")
        for tokens in options.tokens.split(",")
    ]
    settings = {key: getattr(options, key) for key in ("samples", "window")}
    with rows.one_sentence():
        rows.run(options, tasks, measure, settings | {"dtype": "bfloat16", "unit": "milliseconds"})


if __name__ == "__main__":
    main()
