"""Time the decomposition by the smaller Gram against the SVD of the whitened matrix, on the same random problem.

    python benchmarks/decomposition.py --out benchmarks/results/decomposition.json

Prints, per shape (m, n): seconds of both and of the values alone, also over the time of one product of m n min(m, n)
multiplications, the ratio of both, and the largest relative difference of the predicted errors at a quarter, half and
three quarters of the ranks. On one thread the seconds are processor time. Both start from W and H: the alternative
takes the root of H, multiplies and factors; ours takes a root only where it needs one (m > n).
"""

import argparse
import json
import time
from pathlib import Path

import torch

from slimrank.numerics.grams import Grams, square_root
from slimrank.spectrum.curve import Curve, curve
from slimrank.spectrum.decomposition import decompose_weight

SHAPES = [(1024, 1024), (1024, 2816), (2816, 1024), (2048, 2048)]


def timed(function, repeats):
    """The fastest of some runs, in seconds, and the last run's result."""
    best, clock = float("inf"), time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    for _ in range(repeats):
        started = clock()
        result = function()
        best = min(best, clock() - started)
    return best, result


def whitened_svd(weight, gram):
    return torch.linalg.svd(weight @ square_root(gram)[0], full_matrices=False)


def compare(shape, repeats):
    m, n = shape
    generator = torch.Generator().manual_seed(m * n)
    weight = torch.randn(m, n, dtype=torch.float64, generator=generator) / n**0.5
    x = torch.randn(n, 2 * n, dtype=torch.float64, generator=generator) * torch.logspace(-2, 1, n).double()[:, None]
    gram = x @ x.T
    ours, found = timed(lambda: decompose_weight(weight, Grams(right=gram)), repeats)
    alone, _ = timed(lambda: curve(weight, Grams(right=gram), None, bases=False), repeats)
    floor, _ = timed(lambda: weight @ weight.T if m <= n else weight.T @ weight, repeats)
    theirs, (_, values, _) = timed(lambda: whitened_svd(weight, gram), repeats)
    a, b = (Curve(v).losses() for v in (found.values, values))
    ranks = [min(shape) * k // 4 for k in (1, 2, 3)]
    return {
        "shape": list(shape),
        "gram_seconds": round(ours, 3),
        "svd_seconds": round(theirs, 3),
        "values_seconds": round(alone, 3),
        "gemm_seconds": round(floor, 3),
        "over_gemm": {k: round(v / floor, 1) for k, v in (("gram", ours), ("svd", theirs), ("values", alone))},
        "ratio": round(theirs / ours, 2),
        "largest_relative_difference": float(((a[ranks] - b[ranks]).abs() / b[ranks]).max()),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = []
    for shape in SHAPES:
        rows.append(compare(shape, args.repeats))
        print(rows[-1], flush=True)
    record = {"torch": torch.__version__, "threads": args.threads, "dtype": "float64", "rows": rows}
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
