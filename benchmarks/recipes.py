"""Perplexity of recipes at several keeps and seeds, on any model and texts.

    python benchmarks/recipes.py MODEL --calibration train.txt --text test.txt --window 256 --samples 256 \
        --recipes svd,svd-llm --keeps 0.8,0.6 --seeds 3,4,5 --out benchmarks/results/recipes.json

Every row is a fresh compression: the model loaded, calibrated, compressed in memory and evaluated.
"""

import argparse
import json
import platform
from pathlib import Path

import torch
import transformers

import slimrank
from slimrank.calibrate import read_text
from slimrank.evaluate import perplexity


def measure(args, recipe, keep, seed, text):
    loaded = slimrank.load(args.model)
    options = {"samples": args.samples, "window": args.window, "seed": seed, "settings": args.set}
    result = slimrank.compress(loaded, recipe, keep=keep, calibration=args.calibration, **options)
    found = perplexity(
        result.model,
        loaded.tokenizer,
        text,
        window=args.window,
        max_windows=args.max_windows,
        special_tokens=args.special_tokens,
    )
    return {
        "recipe": recipe,
        "keep": keep,
        "seed": seed,
        "perplexity": round(found.perplexity, 3),
        "nats": round(found.nats, 5),
        "linears_kept": round(result.plan.budget.used / result.plan.budget.dense, 5),
        "seconds": round(sum(result.seconds.values()), 1),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration")
    parser.add_argument("--text", default="demo")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--max-windows", type=int, default=256)
    parser.add_argument("--special-tokens", action="store_true")
    parser.add_argument("--recipes", default="svd-llm")
    parser.add_argument("--keeps", default="0.8,0.6")
    parser.add_argument("--seeds", default="3,4,5")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = read_text(args.text, part="evaluation")
    rows = []
    for recipe in args.recipes.split(","):
        for keep in map(float, args.keeps.split(",")):
            for seed in map(int, args.seeds.split(",")):
                rows.append(measure(args, recipe, keep, seed, text))
                print(rows[-1], flush=True)
    if args.out:
        settings = {k: str(v) for k, v in vars(args).items() if k != "out"}
        settings |= {"torch": torch.__version__, "transformers": transformers.__version__, "cpu": platform.machine()}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
