"""How far compressed models' predictions are from the dense model's, beside what they lose of each text.

    python benchmarks/divergence.py demo --text demo --text C4.jsonl:text --recipes svd-llm,slimrank --keeps 0.8,0.6 \
        --samples 64 --window 256 --max-windows 64 --out benchmarks/results/divergence-demo.json

Of a text that the dense model predicts badly, a compressed model may lose less than nothing: its perplexity then says
nothing of how much of the dense model is left, KL(dense || compressed) does.
"""

import argparse
import json
from pathlib import Path

import torch

import slimrank
from slimrank.calibrate import read_text
from slimrank.calibrate.tokens import encode
from slimrank.refine.distill import held_out_divergence
from slimrank.refine.lora import next_token_loss
from slimrank.versions import versions


def windows(tokenizer, text, window, count):
    """The first `count` windows of the text without overlap, (count, window)."""
    ids = encode(tokenizer, [text.text], special_tokens=False)[0][: count * window]
    return torch.tensor(ids[: len(ids) // window * window]).view(-1, window)


@torch.no_grad()
def nats(model, ids):
    """The mean loss of a token."""
    return sum(next_token_loss(model, chunk).item() * len(chunk) for chunk in ids.split(8)) / len(ids)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration")
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--recipes", default="svd-llm,slimrank")
    parser.add_argument("--keeps", default="0.8,0.6")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--max-windows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    dense = slimrank.load(args.model)
    texts = [read_text(spec, part="evaluation") for spec in args.text]
    sets = {
        text.source.rpartition("/")[2]: windows(dense.tokenizer, text, args.window, args.max_windows) for text in texts
    }
    before = {name: nats(dense.model, ids) for name, ids in sets.items()}
    settings = vars(args) | {"text": list(sets), "out": args.out.name, "versions": versions()}
    rows = []
    for recipe in args.recipes.split(","):
        for keep in map(float, args.keeps.split(",")):
            reading = {"samples": args.samples, "window": args.window, "seed": args.seed}
            found = slimrank.compress(args.model, recipe, keep=keep, calibration=args.calibration, **reading).model
            kl = {name: round(held_out_divergence(found, dense.model, ids), 5) for name, ids in sets.items()}
            lost = {name: round(nats(found, ids) - before[name], 5) for name, ids in sets.items()}
            rows.append({"recipe": recipe, "keep": keep, "divergence": kl, "nats_lost": lost})
            print(rows[-1], flush=True)
            args.out.write_text(json.dumps({"settings": settings, "dense_nats": before, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
