"""The ablation table of recipe slimrank: a row a switch, perplexity at every keep, seconds.

    python benchmarks/ablation.py MODEL --calibration TRAIN --text TEST [--keep 0.8,0.6] [--json FILE] [--only NAME ...]

A row is a list of --set overrides of the recipe, which joins nothing where the allocator or form can't;
`--row "name: key=value key=value"` adds one.
"""

import argparse
import json
import sys
import time
from pathlib import Path

from slimrank import compress
from slimrank.calibrate import read_text
from slimrank.evaluate import perplexity
from slimrank.load import load

ANCHORED = "name: anchored, windows: 64"
NEWTON = "{name: newton, steps: 4, windows: 48}"


def refiners(*, anchored: str | None = ANCHORED, temperature: bool = True, newton: str = NEWTON) -> list[str]:
    """The recipe's own refiners but for what is said."""
    steps = [f"{{{anchored}}}" if anchored else "", "temperature" if temperature else "", newton]
    return [f"refine=[{', '.join(step for step in steps if step)}]"]


ROWS: dict[str, list[str]] = {
    "svd-llm": [],
    "slimrank": [],
    "G of the text's tokens": ["metric.labels=text"],
    "G not shrunk": ["metric.shrink=0"],
    "G its mean diagonal": ["metric.shrink=1"],
    "G of all tokens": ["metric.tokens=null"],
    "input metric only, uniform ranks": ["metric=whitened", "allocate=uniform", "form=pivoted"],
    "uniform ranks": ["allocate=uniform", "form=pivoted"],
    "nothing joined": ["form=pivoted"],
    "prices measured": ["allocate={name: nats, calibrate: 3}", "form=pivoted"],
    "no pivots": ["form=low_rank"],
    "no anchored targets": refiners(anchored=None),
    "no temperature": refiners(temperature=False),
    "no Newton steps": refiners(newton=""),
    "one Newton step": refiners(newton="{name: newton, windows: 48}"),
    "one Newton step on 192 windows": refiners(newton="{name: newton, windows: 192}"),
    "temperature after the Newton steps": [f"refine=[{{{ANCHORED}}}, {NEWTON}, temperature]"],
    "none of the three": ["refine=[]"],
    "targets not shifted (mix 0)": refiners(anchored=f"{ANCHORED}, mix: 0"),
    "targets per linear, not the residual stream": refiners(anchored=f"{ANCHORED}, residual: false"),
    "mix 0.5": refiners(anchored=f"{ANCHORED}, mix: 0.5"),
    "mix 1": refiners(anchored=f"{ANCHORED}, mix: 1"),
    "mix by held-out block error": refiners(anchored=f"{ANCHORED}, mix: [0.5, 0.75, 1]"),
    "all windows for the targets": refiners(anchored="name: anchored"),
    "anchored again, gradients of the compressed model": [
        f"refine=[{{{ANCHORED}}}, {{{ANCHORED}, gradients_again: 64}}, temperature, {NEWTON}]"
    ],
}


def measure(options: argparse.Namespace, name: str, settings: list[str], keep: float) -> dict[str, object]:
    """One compression and its perplexity."""
    recipe = name if name in ("svd-llm", "slimrank") else "slimrank"
    loaded = load(options.model)
    started = time.perf_counter(), time.process_time()
    result = compress(
        loaded, recipe, keep=keep, calibration=options.calibration, samples=options.samples, window=options.window,
        seed=options.seed, settings=settings,
    )  # fmt: skip
    seconds, processor = time.perf_counter() - started[0], time.process_time() - started[1]
    score = perplexity(
        result.model, loaded.tokenizer, read_text(options.text), window=options.window,
        max_windows=options.max_windows, special_tokens=False,
    )  # fmt: skip
    return {
        "row": name, "keep": keep, "perplexity": score.perplexity, "nats": score.nats, "seconds": seconds,
        "processor_seconds": processor, "used": result.plan.budget.used / result.plan.budget.dense,
        "settings": settings, "notes": result.plan.notes,
    }  # fmt: skip


def main() -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibration", required=True)
    parser.add_argument("--text", required=True)
    parser.add_argument("--keep", default="0.8,0.6,0.4")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--max-windows", type=int, default=256)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--row", action="append", default=[], help='"name: key=value key=value"')
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    keeps = [float(keep) for keep in options.keep.split(",")]
    rows = {k: v for k, v in ROWS.items() if not options.only or k in options.only}
    rows |= {name.strip(): rest.split() for name, _, rest in (row.partition(":") for row in options.row)}
    if not rows:
        sys.exit(f"--only names no row: choose of {', '.join(ROWS)}.")
    print(f"| {options.model} | {' | '.join(f'keep {keep:g}' for keep in keeps)} | seconds |")
    print("|---" * (len(keeps) + 2) + "|", flush=True)
    results = []
    for name, settings in rows.items():
        measured = [measure(options, name, settings, keep) for keep in keeps]
        results += measured
        cells = " | ".join(f"{m['perplexity']:.2f}" for m in measured)
        print(f"| {name} | {cells} | {measured[0]['seconds']:.1f} |", flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
