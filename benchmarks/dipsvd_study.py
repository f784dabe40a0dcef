"""What DipSVD's two protections do: the experiments behind docs/dipsvd-study.md, on any model.

    python benchmarks/dipsvd_study.py demo --samples 128 --jobs 2 --out FILE
    python benchmarks/dipsvd_study.py MODEL --calibration train.txt --text test.txt --out FILE --jobs 16

Parts (--parts, all by default):
  gain      the amplified share of channels against the gain, ranks uniform: perplexity; the held-out error of the
            protected channels and of the others; how much of the kept singular space stays that of plain whitening and
            of the weight itself
  singular  the same at 20 % of the singular values of every matrix, which is another budget for each shape
  ratios    shares per block, uniform, by the heuristic and by Bayesian optimisation: perplexity, seconds, the shares
  damage    each block's effective rank, sensitivity and similarity against the measured damage of cutting it alone
"""

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import product
from statistics import mean
from typing import Any

import recipes as recipe_rows
import rows as rows_of
import torch
from rows import Task
from scipy.stats import spearmanr
from torch import Tensor

import slimrank
from slimrank.allocate import Problem
from slimrank.allocate.budget import fit_ranks
from slimrank.allocate.dipsvd import effective_rank, sensitivity
from slimrank.allocate.measure import Damage
from slimrank.calibrate import collect_gradients
from slimrank.calibrate.reading import Reading, read_windows
from slimrank.comparison import dense_afterwards
from slimrank.evaluate import perplexities
from slimrank.metric.channels import channel_weights
from slimrank.metric.grams import Grams, squared_error
from slimrank.model import Decoder
from slimrank.pipeline import calibrate, decompose_all, factorize, make_plan
from slimrank.plan import LinearPlan, Plan
from slimrank.recipe import Recipe, load_recipe
from slimrank.session import Session
from slimrank.spectrum import decompose

SHARES = (0.01, 0.03, 0.05, 0.1)
GAINS = {"paper": (1.5, 3.0, 30**0.5, 30.0, "auto"), "released": (3.0, 30.0, "auto")}
RATIOS = {
    "uniform": "uniform",
    "released": "{name: block_importance, direction: released}",
    "paper": "{name: block_importance, direction: paper}",
    "released, fisher": "{name: block_importance, direction: released, sensitivity: fisher}",
    "paper, fisher": "{name: block_importance, direction: paper, sensitivity: fisher}",
    "bayes gp": "{name: bayes, sampler: gp, trials: TRIALS, windows: WINDOWS}",
    "bayes tpe": "{name: bayes, sampler: tpe, trials: TRIALS, windows: WINDOWS}",
}


def tasks(options: argparse.Namespace) -> list[Task]:
    """A task a row, the long ones first."""
    gains = [("paper", 0.03, 1.0), *((v, s, g) for v in GAINS for s, g in product(SHARES, GAINS[v]))]
    named = [{"variant": v, "share": s, "gain": g} for v, s, g in gains]
    parts = {
        "ratios": [{"ratios": name, "keep": keep} for name in reversed(RATIOS) for keep in options.keeps],
        "damage": [{"keep": keep} for keep in options.keeps],
        "gain": [{"keep": keep, **gain} for keep in options.keeps for gain in named],
        "singular": [{"values": 0.2, **gain} for gain in named],
    }
    chosen = {part: rows for part, rows in parts.items() if part in options.parts}
    return [
        {"part": part, "seed": seed, **row} for part, rows in chosen.items() for seed in options.seeds for row in rows
    ]


def measure(options: argparse.Namespace, todo: list[Task]) -> Iterator[dict[str, Any]]:
    """The tasks' rows, those of one seed from one calibration."""
    for seed in dict.fromkeys(task["seed"] for task in todo):
        study = Study(options, seed)
        for task in (task for task in todo if task["seed"] == seed):
            yield task | PARTS[task["part"]](study, task)


class Study:
    """A calibrated model, gradients too, from which sessions are made; it is dense again between them."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options = options
        self.texts = recipe_rows.read_texts(options.text)
        self.loaded = slimrank.load(options.model, device=options.device, dtype=options.dtype)
        self.decoder = Decoder(self.loaded.model)
        self.linears = self.decoder.linears()
        self.windows = read_windows(self.loaded, Reading(options.calibration, options.samples, options.window, seed))
        self.moments, self.held_out = calibrate(self.decoder, self.windows, self.linears)
        started = time.perf_counter()
        collect_gradients(self.decoder, self.windows.calibration, self.linears, self.moments)
        self.gradient_seconds = time.perf_counter() - started
        self._bases: dict[str, tuple[Tensor, Tensor]] = {}

    def session(self, keep: float, recipe: Recipe) -> Session:
        """A session at a keep, its linears decomposed."""
        made = Session(
            self.decoder, self.linears, self.windows, recipe.metric, recipe.form, keep, self.moments, self.held_out
        )
        decompose_all(made)
        return made

    def perplexity(self, session: Session, plan: Plan) -> dict[str, float]:
        """By text, of the model as the plan has it."""
        limits = {"max_windows": self.options.max_windows, "special_tokens": self.options.special_tokens}
        with dense_afterwards(session):
            factorize(session, plan)
            found = perplexities(self.loaded, self.texts, window=self.options.window, **limits)
        return {text.rpartition("/")[2]: round(one.perplexity, 3) for text, one in found.items()}

    def bases(self, session: Session, name: str) -> tuple[Tensor, Tensor]:
        """The left singular vectors of a linear's output W X on calibration tokens, and of its weight W."""
        if name not in self._bases:
            site = session.site(name)
            grams = Grams(right=site.inputs.gram), Grams()
            whitened, plain = (decompose(site.weight, each).left for each in grams)
            self._bases[name] = whitened, plain
        return self._bases[name]


def measure_gain(study: Study, task: Task) -> dict[str, Any]:
    """Uniform ranks at a keep, or the same share of every matrix's singular values."""
    gain = {"name": "channels", "variant": task["variant"], "share": task["share"], "gain": task["gain"]}
    recipe = load_recipe("dipsvd", [f"metric={json.dumps(gain)}", "allocate=uniform"])
    session = study.session(task.get("keep", task.get("values")), recipe)
    plan = make_plan(session, recipe)
    if "values" in task:
        plan = at_share_of_values(plan, task["values"])
    each = [channel_figures(study, session, name, one) for name, one in plan.linears.items() if one.rank]
    means = {key: round(mean(one[key] for one in each), 5) for key in each[0]}
    stored = sum(one.rank * sum(one.shape) for one in plan.linears.values() if one.rank)
    return {
        "perplexity": study.perplexity(session, plan),
        **means,
        "kept": round(stored / plan.budget.dense, 5),
        "gains": Counter(f"{value:.3g}" for value in session.choices.values()),
    }


def at_share_of_values(plan: Plan, share: float) -> Plan:
    """The plan with round(share q) of every matrix's q singular values."""
    linears = {
        name: one.model_copy(update={"rank": max(1, round(share * min(one.shape)))})
        for name, one in plan.linears.items()
    }
    return plan.model_copy(update={"linears": linears})


def channel_figures(study: Study, session: Session, name: str, planned: LinearPlan) -> dict[str, float]:
    """One linear's held-out errors and kept directions.

    error: |E X|_F over |W X|_F. protected, others: the same of these channels' own parts, |E_j|^2 H_jj, alone.
    like_whitened, like_weight: |U_r^T V_r|_F^2 / r of the kept output directions U_r with those of plain whitening and
    of the weight's own SVD; chance: what random directions have, r / m.
    """
    site, rank = session.site(name), planned.rank or 0
    left, right = session.decompositions[name].cut(rank)
    weight, gram = site.weight.double(), site.held_out.gram
    error = weight - left @ right
    channels = channel_weights(site.inputs.gram, session.metric.share, 2.0) == 2
    lost, there = (x.square().sum(0) * gram.diagonal() for x in (error, weight))
    kept = torch.linalg.qr(left).Q
    whitened, plain = ((kept.T @ other[:, :rank]).square().sum().item() / rank for other in study.bases(session, name))
    return {
        "error": (squared_error(error, Grams(right=gram)) / squared_error(weight, Grams(right=gram))) ** 0.5,
        "protected": (lost[channels].sum() / there[channels].sum()).sqrt().item(),
        "others": (lost[~channels].sum() / there[~channels].sum()).sqrt().item(),
        "like_whitened": whitened,
        "like_weight": plain,
        "chance": rank / planned.shape[0],
    }


def measure_ratios(study: Study, task: Task) -> dict[str, Any]:
    """One way to share the budget out among the blocks, the metric being DipSVD's own."""
    options = study.options
    allocate = RATIOS[task["ratios"]].replace("TRIALS", str(options.trials)).replace("WINDOWS", str(options.objective))
    recipe = load_recipe("dipsvd", [f"allocate={allocate}"])
    session = study.session(task["keep"], recipe)
    started = time.perf_counter()
    plan = make_plan(session, recipe)
    seconds = time.perf_counter() - started + (study.gradient_seconds if recipe.allocate.gradients else 0)
    return {
        "perplexity": study.perplexity(session, plan),
        "seconds": round(seconds, 2),
        "shares": recipe_rows.block_shares(plan),
        "notes": plan.notes,
    }


def measure_damage(study: Study, task: Task) -> dict[str, Any]:
    """What the scores say of each block and what cutting it does, in nats per token on calibration windows.

    alone: KL(dense || model) with this block alone cut to the keep; spared: what leaving it dense saves where all
    others are cut. The metric is plain whitening.
    """
    keep, recipe = task["keep"], load_recipe("svd-llm")
    session = study.session(keep, recipe)
    ranks = fit_ranks(Problem(keep, session.spectrum(), session.form, session), dict.fromkeys(session.dense, keep))
    windows, tokens = study.options.objective, study.windows.calibration.shape[1]
    single, whole = Damage(session, windows=windows), Damage(session, ranks, windows=windows)
    base, found = whole.kl({}), []
    for index, block in enumerate(study.linears):
        seen = study.moments.blocks[index]
        sites = [session.site(name) for name in block]
        found.append(
            {
                "effective_rank": effective_rank(seen.gram),
                "gradient": sum(sensitivity(site.outputs, site.weight) for site in sites),
                "fisher": sum(sensitivity(site.outputs, site.weight, "fisher") for site in sites),
                "turn": 1 - seen.cosine / seen.tokens,
                "alone": single.kl({name: ranks[name] for name in block}) / tokens,
                "spared": (base - whole.kl(dict.fromkeys(block))) / tokens,
            }
        )
    return {"blocks": {key: [one[key] for one in found] for key in found[0]}, "whole": base / tokens}


PARTS: dict[str, Callable[[Study, Task], dict[str, Any]]] = {
    "ratios": measure_ratios,
    "damage": measure_damage,
    "gain": measure_gain,
    "singular": measure_gain,
}


def report(found: list[dict[str, Any]]) -> Iterator[str]:
    """The tables, in Markdown; means over seeds."""
    gains = [row for row in found if row["part"] == "gain"]
    for keep in sorted({row["keep"] for row in gains}, reverse=True):
        yield from gain_table(f"Gain at keep {keep:g}", [row for row in gains if row["keep"] == keep])
    yield from gain_table("Gain at 20 % of the singular values", [row for row in found if row["part"] == "singular"])
    yield from ratios_table([row for row in found if row["part"] == "ratios"])
    yield from damage_table([row for row in found if row["part"] == "damage"])


def gain_table(title: str, found: list[dict[str, Any]]) -> Iterator[str]:
    """A line a variant, share and gain."""
    if not found:
        return
    columns = ["error", "protected", "others", "like_whitened", "like_weight", "chance"]
    yield f"\n{title}\n\n| variant | share | gain | perplexity | {' | '.join(columns)} |"
    yield "|---" * (4 + len(columns)) + "|"
    for key in dict.fromkeys((row["variant"], row["share"], row["gain"]) for row in found):
        own = [row for row in found if (row["variant"], row["share"], row["gain"]) == key]
        gain = key[2] if isinstance(key[2], str) else f"{key[2]:.3g}"
        cells = [f"{mean(row[column] for row in own):.3f}" for column in columns]
        yield f"| {key[0]} | {key[1]:g} | {gain} | {by_text(own)} | {' | '.join(cells)} |"


def ratios_table(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line a keep and way; its shares' rank correlation with those of the Gaussian process."""
    if not found:
        return
    yield "\nShares per block\n\n| keep | ratios | perplexity | seconds | shares | rank correlation with bayes gp |"
    yield "|---" * 6 + "|"
    for keep, name in sorted(dict.fromkeys((row["keep"], row["ratios"]) for row in found), key=lambda key: -key[0]):
        own = [row for row in found if (row["keep"], row["ratios"]) == (keep, name)]
        searched = {r["seed"]: r["shares"] for r in found if (r["keep"], r["ratios"]) == (keep, "bayes gp")}
        both = [correlation(row["shares"], searched[row["seed"]]) for row in own if row["seed"] in searched]
        agreement = f"{mean(both):.2f}" if both and name not in ("uniform", "bayes gp") else "-"
        shares = ", ".join(f"{share:.2f}" for share in own[0]["shares"])
        yield f"| {keep:g} | {name} | {by_text(own)} | {mean(r['seconds'] for r in own):.0f} | {shares} | {agreement} |"


def damage_table(found: list[dict[str, Any]]) -> Iterator[str]:
    """A line a keep and score: its rank correlation with both measured damages."""
    if not found:
        return
    yield "\nScores against measured damage\n\n| keep | score | with the block cut alone | with the block spared |"
    yield "|---" * 4 + "|"
    for keep in sorted({row["keep"] for row in found}, reverse=True):
        own = [row["blocks"] for row in found if row["keep"] == keep]
        for score in ("effective_rank", "gradient", "fisher", "turn"):
            cells = [f"{mean(correlation(row[score], row[kind]) for row in own):.2f}" for kind in ("alone", "spared")]
            yield f"| {keep:g} | {score} | {' | '.join(cells)} |"


def correlation(a: list[float], b: list[float]) -> float:
    """Spearman's, 0 where one of them is the same everywhere."""
    found = float(spearmanr(a, b).statistic) if len(set(a)) > 1 and len(set(b)) > 1 else 0.0
    return 0.0 if math.isnan(found) else found


def by_text(own: list[dict[str, Any]]) -> str:
    """Perplexities, the mean over seeds and their range."""
    return ", ".join(recipe_rows.cell([row["perplexity"][text] for row in own]) for text in own[0]["perplexity"])


def parts(text: str) -> list[str]:
    """The parser of a list of parts."""
    chosen = text.split(",")
    if unknown := [part for part in chosen if part not in PARTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(PARTS)}.")
    return chosen


def main() -> None:
    """Measure what is missing and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    recipe_rows.add_options(parser)
    parser.add_argument("--parts", type=parts, default=list(PARTS))
    parser.add_argument("--trials", type=int, default=180, help="of the Bayesian optimisation")
    parser.add_argument("--objective", type=int, default=128, help="windows of its objective, and of the damage")
    parser.set_defaults(keeps=[0.8, 0.6, 0.4, 0.2])
    options = parser.parse_args()
    options.text = options.text or ["demo"]
    limits = {"trials": options.trials, "objective": options.objective}
    with rows_of.one_sentence():
        found = rows_of.run(options, tasks(options), measure, recipe_rows.settings(options) | limits)
    print("\n".join(report(found)))


if __name__ == "__main__":
    main()
