"""Each paper's method taken apart: its parts alone and crossed with each other, from one calibration of one model.

    python benchmarks/papers_apart.py MODEL --calibration train.txt --text test.txt --device cuda --out FILE
    python benchmarks/papers_apart.py MODEL --calibration train.txt --text test.txt --out FILE --variants svd-llm

DipSVD's channel weights (none, paper, released, auto) are crossed with ways to share out the budget (uniform, its
heuristic in both directions, its Bayesian optimisation); of SVD-LLM V2, Duo-SVD, CPSVD and ASVD the allocation and what
makes the factors are run without each other. --list prints the variants. Searches take --trials and --windows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import variants
from variants import Variants, lost

WEIGHTS = {
    "none": ["metric=whitened"],
    "paper": ["metric.variant=paper"],
    "released": ["metric.variant=released"],
    "auto": ["metric.variant=paper", "metric.gain=auto"],
}
SHARES = {
    "uniform": ["allocate=uniform"],
    "released": ["allocate.direction=released", "allocate.spread=0.2"],
    "paper": ["allocate.direction=paper", "allocate.spread=0.2"],
    "bayes": ["allocate={name: bayes, trials: TRIALS, windows: WINDOWS}"],
}
CROSS = {
    f"dipsvd {weights} {shares}": ("dipsvd", [*metric, *allocate])
    for weights, metric in WEIGHTS.items()
    for shares, allocate in SHARES.items()
}
HEURISTIC = {
    "paper spread 0.1": ["allocate.direction=paper", "allocate.spread=0.1"],
    "paper spread 0.05": ["allocate.direction=paper", "allocate.spread=0.05"],
    "released spread 0.1": ["allocate.direction=released", "allocate.spread=0.1"],
    "released segments": [*SHARES["released"], "allocate.segments=4"],
    "paper fisher": [*SHARES["paper"], "allocate.sensitivity=fisher"],
    "released fisher": [*SHARES["released"], "allocate.sensitivity=fisher"],
    "sensitivity alone": [*SHARES["paper"], "allocate.beta=1"],
    "rank alone": [*SHARES["paper"], "allocate.beta=0"],
}
MEASURED = "allocate.windows=WINDOWS"
VARIANTS: Variants = {
    "svd-llm": ("svd-llm", []),
    "svd-llm-v2": ("svd-llm-v2", []),
    "svd-llm-v2 allocation": ("svd-llm-v2", ["route=projector"]),
    "svd-llm-v2 truncation": ("svd-llm-v2", ["allocate=uniform"]),
    "dipsvd": ("dipsvd", []),
    "cpsvd allocation": ("cpsvd-shares", []),
    "cpsvd allocation of blocks": ("cpsvd-shares", ["allocate.modules=false"]),
    **{f"dipsvd none {name}": ("dipsvd", ["metric=whitened", *settings]) for name, settings in HEURISTIC.items()},
    **CROSS,
    "asvd metric": ("asvd", ["allocate=uniform"]),
    "cpsvd": ("cpsvd", []),
    "duo-svd columns": ("duo-svd", ["allocate=uniform"]),
    "duo-svd allocation": ("duo-svd", ["form=low_rank", MEASURED]),
    "duo-svd": ("duo-svd", [MEASURED]),
    "asvd allocation": ("asvd", ["metric=whitened", MEASURED]),
    "asvd": ("asvd", [MEASURED]),
}


def report(found: Sequence[dict[str, Any]], keeps: Sequence[float]) -> Iterator[str]:
    """Markdown, nats lost: DipSVD's cross for each text and keep, then a line a variant."""
    rows = [row | {"variant": "dipsvd none uniform"} if row["variant"] == "svd-llm" else row for row in found]
    texts = list(found[0]["nats_lost"])
    if sum(row["variant"] in CROSS for row in rows) > 1:
        for text in texts:
            yield f"\nDipSVD on {text}, nats lost: channel weights down, shares across\n"
            yield "| weights | " + " | ".join(f"{shares} {keep:g}" for keep in keeps for shares in SHARES) + " |"
            yield "|---" * (1 + len(keeps) * len(SHARES)) + "|"
            for weights in WEIGHTS:
                names = [f"dipsvd {weights} {shares}" for shares in SHARES]
                cells = [lost(rows, name, keep, text) for keep in keeps for name in names]
                yield f"| {weights} | " + " | ".join(cells) + " |"
    yield from variants.table(found, keeps)


def main() -> None:
    """Measure what is missing and print the tables."""
    variants.main(VARIANTS, __doc__, "papers-apart", report)


if __name__ == "__main__":
    main()
