"""How far compressed models' predictions are from the dense model's, beside what they lose of each text.

    python benchmarks/divergence.py demo --text demo --text C4.jsonl:text --recipes svd-llm,slimrank --keeps 0.8,0.6 \
        --samples 64 --window 256 --max-windows 64 --out benchmarks/results/divergence-demo.json

Of a text that the dense model predicts badly, a compressed model may lose less than nothing: its perplexity then says
nothing of how much of the dense model is left, KL(dense || compressed) does.
"""

import argparse
import json
from pathlib import Path

import recipes as recipe_rows

import slimrank
from slimrank.evaluate import perplexity
from slimrank.evaluate.perplexity import text_windows
from slimrank.refine.distill import held_out_divergence
from slimrank.versions import versions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration")
    parser.add_argument("--text", action="append", required=True)
    parser.add_argument("--recipes", type=recipe_rows.names, default=["svd-llm", "slimrank"])
    parser.add_argument("--keeps", type=recipe_rows.keeps, default=[0.8, 0.6])
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--max-windows", type=int, default=64)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    dense = slimrank.load(args.model)
    texts = {recipe_rows.short(text): text for text in recipe_rows.read_texts(args.text)}
    asked = {"window": args.window, "max_windows": args.max_windows, "special_tokens": False}
    sets = {name: text_windows(dense.tokenizer, text, **asked) for name, text in texts.items()}

    def nats(model):
        return {name: perplexity(model, dense.tokenizer, text, **asked).nats for name, text in texts.items()}

    before = nats(dense.model)
    settings = vars(args) | {"text": list(texts), "out": args.out.name, "versions": versions()}
    rows = []
    for recipe in args.recipes:
        for keep in args.keeps:
            reading = {"samples": args.samples, "window": args.window, "seed": args.seed}
            found = slimrank.compress(args.model, recipe, keep=keep, calibration=args.calibration, **reading).model
            kl = {name: round(held_out_divergence(found, dense.model, ids), 5) for name, ids in sets.items()}
            lost = {name: round(after - before[name], 5) for name, after in nats(found).items()}
            rows.append({"recipe": recipe, "keep": keep, "divergence": kl, "nats_lost": lost})
            print(rows[-1], flush=True)
            args.out.write_text(json.dumps({"settings": settings, "dense_nats": before, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
