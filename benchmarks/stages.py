"""Time the decomposition of one block's linears: slimrank's beside a straightforward SVD-LLM route, in one run.

    python benchmarks/stages.py --width 1024 --inner 2816 --out benchmarks/results/stages.json

The plain route is float64 Cholesky of H, its inverse, and the SVD (gesdd on a CPU) of W S for every linear, as the
method's public code does it. Ours is the curve of every linear (`slimrank.spectrum.curve`), whose eigenvectors the
factors are then cut from; both are timed with that cut. `two_sided` adds a left Gram to ours, which the plain route
does not have. `gemm_floor` is the time of the products alone that form the small Gram, m n (m + n) multiplications.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from slimrank.metric.grams import Grams
from slimrank.spectrum import curve, decompose_again


def plain(weight, gram, rank):
    """SVD-LLM: W' = U S (V S^-1)."""
    factor = torch.linalg.cholesky(gram)
    inverse = torch.linalg.inv(factor)
    u, s, v = torch.linalg.svd(weight @ factor, full_matrices=False)
    return (u[:, :rank] * s[:rank].sqrt()), s[:rank].sqrt()[:, None] * v[:rank] @ inverse


def ours(weight, gram, left, rank):
    """The curve, and the factors from its eigenvectors."""
    grams = Grams(left, gram)
    found = curve(weight, grams, None)
    return decompose_again(weight, grams, "projector", (found.values, found.basis), rank).cut(rank)


def floor(weight):
    """The products of the small Gram."""
    m, n = weight.shape
    square = torch.randn(n, n, dtype=torch.float64, device=weight.device)
    return weight @ square @ weight.T if m <= n else weight.T @ weight @ square


def timed(function, *args):
    """Seconds and the result."""
    if args[0].is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    result = function(*args)
    if args[0].is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--inner", type=int, default=2816)
    parser.add_argument("--keep", type=float, default=0.8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    d, f = args.width, args.inner
    shapes = {"q, k, v, o": ((d, d), 4), "gate, up": ((f, d), 2), "down": ((d, f), 1)}
    generator = torch.Generator().manual_seed(0)
    rows, totals = [], dict.fromkeys(("plain", "ours", "two_sided", "gemm_floor"), 0.0)
    for name, ((m, n), count) in shapes.items():
        x = torch.randn(n, 2 * n, generator=generator, dtype=torch.float64) * torch.logspace(-2, 1, n).double()[:, None]
        g = torch.randn(m, 2 * m, generator=generator, dtype=torch.float64)
        weight = torch.randn(m, n, generator=generator, dtype=torch.float64).to(args.device) / n**0.5
        gram, left = (x @ x.T).to(args.device), (g @ g.T / len(g)).to(args.device)
        rank = int(args.keep * m * n / (m + n))
        ours_seconds, (a, b) = timed(ours, weight, gram, None, rank)
        two_sided, _ = timed(ours, weight, gram, left, rank)
        plain_seconds, (c, e) = timed(plain, weight, gram, rank)
        products, _ = timed(floor, weight)
        errors = [(((weight - one) @ gram) * (weight - one)).sum().sqrt().item() for one in (a @ b, c @ e)]
        seconds = {"plain": plain_seconds, "ours": ours_seconds, "two_sided": two_sided, "gemm_floor": products}
        for key, value in seconds.items():
            totals[key] += count * value
        rows.append(
            {"linears": name, "shape": [m, n], "rank": rank}
            | {key: round(value, 3) for key, value in seconds.items()}
            | {"error": errors[0], "plain_error": errors[1]}
        )
        print(rows[-1], flush=True)
    record = {
        "settings": {"width": d, "inner": f, "keep": args.keep, "device": args.device, "threads": args.threads},
        "torch": torch.__version__,
        "linears": rows,
        "block_seconds": {key: round(value, 3) for key, value in totals.items()},
        "plain_over_ours": round(totals["plain"] / totals["ours"], 2),
        "plain_over_two_sided": round(totals["plain"] / totals["two_sided"], 2),
        "ours_over_gemm_floor": round(totals["ours"] / totals["gemm_floor"], 2),
    }
    print(json.dumps({key: record[key] for key in list(record)[3:]}))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
