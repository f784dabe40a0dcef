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
from slimrank.run.compare import compare
from slimrank.runtime.versions import versions
from slimrank.texts.reading import Reading


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
    texts = recipe_rows.read_texts(args.text)
    reading = Reading(args.calibration, args.samples, args.window, args.seed)
    runs = [(slimrank.load_recipe(recipe), keep) for recipe in args.recipes for keep in args.keeps]
    loaded, limits = slimrank.load(args.model), {"max_windows": args.max_windows, "special_tokens": "none"}
    dense, *found = compare(loaded, runs, texts, reading, **limits)
    names = {text.source: recipe_rows.short(text) for text in texts}
    before = {names[text]: read.nats for text, read in dense.texts.items()}
    rows = [
        {
            "recipe": row.recipe,
            "keep": row.keep,
            "divergence": {names[text]: round(read.kl.value, 5) for text, read in row.texts.items()},
            "nats_lost": {
                names[text]: round(read.lost(dense.texts[text]).value, 5) for text, read in row.texts.items()
            },
        }
        for row in found
    ]
    settings = vars(args) | {"text": list(names.values()), "out": args.out.name, "versions": versions()}
    args.out.write_text(json.dumps({"settings": settings, "dense_nats": before, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
