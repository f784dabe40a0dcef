"""Time the decomposition of one block's linears: slimrank's beside a straightforward SVD-LLM route, in one run.

    python benchmarks/stages.py --threads 1 --out benchmarks/results/stages-2048.json

Per linear, in float64 but for one product of `spectrum` with m > n (see projector.Small):

plain      SVD-LLM as its public code does it: Cholesky of H, its inverse, the SVD (gesdd on a CPU) of W S, the cut
spectrum   what `compress` needs for the plan in the default recipe: the values in the two-sided metric (stage
           `decompose`); the plain route has no left Gram
measure    what every cut loses on held-out windows (stage `measure`); the plain route measures nothing
same_job   curve and cut of ours in the plain route's metric
rebuilt    one more decomposition in the two-sided metric, cut at a known rank, as the anchored refiner asks for it
gemm       one product of m n min(m, n) multiplications

On a CPU the seconds are of processor time: with --threads 1 others on the machine don't count.
"""

import argparse
import json
import time
from collections import Counter
from pathlib import Path

import torch

from slimrank.numerics.grams import Grams
from slimrank.spectrum.curve import curve
from slimrank.spectrum.decomposition import decompose_weight, decompose_weight_again


def plain(weight, gram, rank):
    """SVD-LLM: W' = U S (V S^-1)."""
    factor = torch.linalg.cholesky(gram)
    inverse = torch.linalg.inv(factor)
    u, s, v = torch.linalg.svd(weight @ factor, full_matrices=False)
    return (u[:, :rank] * s[:rank].sqrt()), s[:rank].sqrt()[:, None] * v[:rank] @ inverse


def same_job(weight, gram, rank):
    """The curve, and the factors from its eigenvectors."""
    found = curve(weight, Grams(right=gram), None)
    return decompose_weight_again(weight, Grams(right=gram), "projector", (found.values, found.basis), rank).cut(rank)


def gemm(weight):
    """m n min(m, n) multiplications."""
    return weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight


def timed(function, *args, **more):
    """Seconds and the result: processor time on a CPU."""
    cuda = args[0].is_cuda
    clock = time.perf_counter if cuda else time.process_time
    if cuda:
        torch.cuda.synchronize()
    started = clock()
    result = function(*args, **more)
    if cuda:
        torch.cuda.synchronize()
    return clock() - started, result


def weighted_error(weight, factors, gram):
    """|(W - A B) R|_F."""
    error = weight - factors[0] @ factors[1]
    return ((error @ gram) * error).sum().sqrt().item()


def decomposed(weight, gram, left, held_out, rank):
    """Seconds of all the ways, and the errors of the cuts in the one-sided metric."""
    seconds, both = {}, Grams(left, gram)
    seconds["plain"], theirs = timed(plain, weight, gram, rank)
    seconds["spectrum"], _ = timed(curve, weight, both, None, bases=False)
    whole, _ = timed(curve, weight, both, Grams(left, held_out), bases=False)
    seconds["measure"] = whole - seconds["spectrum"]
    seconds["same_job"], ours = timed(same_job, weight, gram, rank)
    seconds["rebuilt"], _ = timed(decompose_weight, weight, both, rank=rank)
    seconds["gemm"], _ = timed(gemm, weight)
    return seconds, [weighted_error(weight, factors, gram) for factors in (ours, theirs)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--inner", type=int, default=5632)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    d, f = args.width, args.inner
    shapes = {"q, k, v, o": ((d, d), 4), "gate, up": ((f, d), 2), "down": ((d, f), 1)}
    generator, totals, rows = torch.Generator().manual_seed(0), Counter(), []

    def gram(n, tokens):
        x = torch.randn(n, tokens, generator=generator, dtype=torch.float64)
        x *= torch.logspace(-2, 1, n, dtype=torch.float64)[:, None]
        return (x @ x.T / tokens).to(args.device)

    for name, ((m, n), count) in shapes.items():
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64).to(args.device) / n**0.5
        rank = int(args.keep * m * n / (m + n))
        seconds, errors = decomposed(weight, gram(n, 2 * n), gram(m, 2 * m), gram(n, n), rank)
        totals.update({key: count * value for key, value in seconds.items()})
        seconds = {key: round(value, 3) for key, value in seconds.items()}
        rows.append({"linears": name, "shape": [m, n], "rank": rank, "seconds": seconds, "errors": errors})
        print(rows[-1], flush=True)
    ways = {
        "spectrum": totals["spectrum"],
        "spectrum and measure": totals["spectrum"] + totals["measure"],
        "same job": totals["same_job"],
        "spectrum, measure and rebuilt": totals["spectrum"] + totals["measure"] + totals["rebuilt"],
    }
    record = {
        "settings": {"width": d, "inner": f, "keep": args.keep, "device": args.device, "threads": args.threads},
        "torch": torch.__version__,
        "linears": rows,
        "block_seconds": {key: round(value, 2) for key, value in totals.items()},
        "plain_over": {way: round(totals["plain"] / value, 2) for way, value in ways.items()},
        "over_gemm": {k: round(v / totals["gemm"], 2) for k, v in [("plain", totals["plain"]), *ways.items()]},
    }
    print(json.dumps({key: record[key] for key in list(record)[3:]}, indent=2))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
