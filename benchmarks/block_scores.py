"""What scores say of each block, and what cutting it does: is a score worth sharing out a budget by?

    python benchmarks/block_scores.py MODEL --calibration train.txt --device cuda --out FILE

Effective rank and sensitivity are DipSVD's, beside them the largest singular value's part of the sum of all; the
turn 1 - cos(block in, block out) is CPSVD's. Damage is measured in nats per token on calibration windows:
KL(dense || model) with this block alone cut to the keep, and what leaving it dense saves where all others are cut.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import recipes as recipe_rows
import rows as rows_of
import torch
from rows import Task
from scipy.stats import spearmanr
from torch import Tensor

import slimrank
from slimrank.allocate import Problem
from slimrank.allocate.budget import same_share
from slimrank.allocate.dipsvd import BlockImportance, effective_rank, sensitivity
from slimrank.allocate.measure import Damage
from slimrank.calibrate import read_text
from slimrank.calibrate.evidence import calibrate
from slimrank.factorize.low_rank import LowRankFactorizer
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import Decoder
from slimrank.recipe import load_recipe
from slimrank.run.steps import decompose
from slimrank.spectrum.spectra import Spectra
from slimrank.texts.reading import Reading, read_windows

SCORES = ("effective_rank", "gradient", "fisher", "turn")


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """A row a keep, all of them from one calibration."""
    loaded, recipe = slimrank.load(options.model, device=options.device, dtype=options.dtype), load_recipe("svd-llm")
    model = Compressible(Decoder(loaded.model))
    windows = read_windows(loaded, Reading(options.calibration, options.samples, options.window, options.seed))
    spectra = decompose(model, calibrate(model, windows, BlockImportance().needs), recipe)
    for task in todo:
        yield task | of_blocks(spectra, task["keep"], options.windows)


def of_blocks(spectra: Spectra, keep: float, windows: int) -> dict[str, Any]:
    """Scores and damage by block, and the damage of cutting all."""
    problem, evidence = Problem(keep, LowRankFactorizer(), spectra), spectra.evidence
    ranks = same_share(problem)
    single, whole = Damage(spectra, windows=windows), Damage(spectra, ranks, windows=windows)
    base, tokens, found = whole.kl({}), evidence.windows.calibration.shape[1], []
    for index, units in problem.by_block().items():
        seen = evidence.moments.blocks[index]
        pairs = [(evidence.output_of(unit.leader), spectra.weight(unit)) for unit in units]
        found.append(
            {
                "effective_rank": effective_rank(seen.gram()),
                "largest": largest_share(seen.gram()),
                "gradient": sum(sensitivity(*pair) for pair in pairs),
                "fisher": sum(sensitivity(*pair, "fisher") for pair in pairs),
                "turn": 1 - seen.cosine.item() / seen.tokens,
                "alone": single.kl({unit: ranks[unit] for unit in units}) / tokens,
                "spared": (base - whole.kl(dict.fromkeys(units))) / tokens,
            }
        )
    return {"blocks": {key: [one[key] for one in found] for key in found[0]}, "whole": base / tokens}


def largest_share(gram: Tensor) -> float:
    """The largest singular value's share of the sum of all, of X with gram = X X^T."""
    values = torch.linalg.eigvalsh(gram.double()).clamp_min(0).sqrt()
    return (values[-1] / values.sum()).item()


def report(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line a keep and score: its rank correlation with both damages."""
    yield "| keep | score | with the block cut alone | with the block spared |"
    yield "|---" * 4 + "|"
    for row in found:
        for score in SCORES:
            cells = [f"{correlation(row['blocks'][score], row['blocks'][kind]):.2f}" for kind in ("alone", "spared")]
            yield f"| {row['keep']:g} | {score} | {' | '.join(cells)} |"


def correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, 0 where one of them is the same everywhere."""
    found = float(spearmanr(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
    return 0.0 if math.isnan(found) else found


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--keeps", type=recipe_rows.keeps, default=[0.8, 0.6])
    parser.add_argument("--calibration", help="SPEC of the text; needed unless MODEL is demo")
    parser.add_argument("--samples", type=rows_of.count, default=64)
    parser.add_argument("--window", type=rows_of.count, default=512)
    parser.add_argument("--windows", type=rows_of.count, default=4, help="that damage is measured on")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    rows_of.add_options(parser, jobs=False)
    options = parser.parse_args()
    with rows_of.one_sentence():
        settings = {
            "model": rows_of.named(options.model),
            "calibration": rows_of.described(read_text(options.calibration or "demo")),
            **{key: getattr(options, key) for key in ("samples", "window", "windows", "seed", "device", "dtype")},
        }
        found = rows_of.run(options, [{"keep": keep} for keep in options.keeps], measure, settings)
    print("\n".join(report(found)))


if __name__ == "__main__":
    main()
