"""Milliseconds of one layer's forward: dense, U V, pivoted and kept columns, all at the same share of the numbers.

    python benchmarks/layers.py --threads 2 --out benchmarks/results/layers-cpu.json

The layers take turns, each with enough copies that no cache holds them all; medians over the rounds.
"""

import argparse
import json
import statistics
import time

import torch
from random_forms import add_options, random_form, set_up
from torch import nn

from slimrank.model.load import DTYPES

SHAPES = [(2048, 2048), (5632, 2048), (2048, 5632)]
FORMS = ["low_rank", "pivoted", "columns"]


def copies(form, out, inp, keep, dtype, device, megabytes=96):
    def one():
        if form == "dense":
            return nn.Linear(inp, out, bias=False, dtype=dtype)
        return random_form(form, out, inp, keep, dtype)

    share = 1 if form == "dense" else keep
    count = max(2, round(megabytes * 2**20 / (share * out * inp * dtype.itemsize)))
    return [one().to(device) for _ in range(count)]


def synchronize(device):
    if device != "cpu":
        torch.cuda.synchronize()


@torch.inference_mode()
def measure(layers, x, rounds, device):
    """Median milliseconds by form."""
    times = {form: [] for form in layers}
    calls = 4 if x.shape[0] < 100 else 1
    for turn in range(rounds + 1):
        for form, some in layers.items():
            synchronize(device)
            started = time.perf_counter()
            for call in range(calls):
                some[(turn * calls + call) % len(some)](x)
            synchronize(device)
            times[form].append((time.perf_counter() - started) / calls)
    return {form: 1000 * statistics.median(own[1:]) for form, own in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--tokens", default="1,16,512")
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    set_up(args)
    dtype, rows = DTYPES[args.dtype], []
    for out, inp in SHAPES:
        layers = {form: copies(form, out, inp, args.keep, dtype, args.device) for form in ["dense", *FORMS]}
        for tokens in map(int, args.tokens.split(",")):
            x = torch.randn(tokens, inp, dtype=dtype, device=args.device)
            found = measure(layers, x, args.rounds, args.device)
            rows.append({"shape": [out, inp], "tokens": tokens} | {form: round(ms, 4) for form, ms in found.items()})
            gains = "  ".join(f"{form} {ms:8.3f} ({found['dense'] / ms:.2f}x)" for form, ms in found.items())
            print(f"{out} x {inp}, {tokens:3} tokens: {gains}  pivoted / UV {found['pivoted'] / found['low_rank']:.3f}")
    settings = {"torch": torch.__version__, "threads": args.threads, "dtype": args.dtype, "device": args.device}
    record = {
        **settings,
        "keep": args.keep,
        "align": args.align,
        "rounds": args.rounds,
        "unit": "milliseconds",
        "rows": rows,
    }
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
