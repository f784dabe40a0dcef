"""DipSVD's ratios by Bayesian optimisation (arXiv 2506.20353): one share a block, judged by perplexity."""

import json
from math import exp
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from slimrank.allocate.base import Allocation, Allocator, Problem
from slimrank.allocate.budget import fit_ranks
from slimrank.allocate.measure import Damage, holds
from slimrank.allocate.study import Sampler, best_trial, best_value, completed, next_trial, open_study, quiet
from slimrank.calibrate.needs import Holds, Work
from slimrank.model.fingerprint import fingerprint
from slimrank.model.units import Unit
from slimrank.store.disk import disk_errors
from slimrank.texts.windows import Windows

RESUMABLE = {"trials", "storage"}  # options that may change when a study is resumed


class Bayes(Allocator):
    """Minimise log perplexity on `windows` calibration windows over one variable in (`low`, 1) for each block.

    The variables are scaled to the budget, and all linears of a block get its share. The first trial is uniform.
    sampler: `gp` (Gaussian process, expected improvement) or `tpe`; trials: evaluations in all, of all processes and
    runs; seed: the calibration's by default; storage: a file that keeps the study, which other processes may share and
    later runs resume.
    """

    name: Literal["bayes"] = "bayes"
    trials: int = Field(180, ge=1)
    windows: int = Field(128, ge=1)
    sampler: Sampler = "gp"
    low: float = Field(0.25, gt=0, lt=1)
    seed: int | None = None
    storage: str | None = None

    @property
    def measures(self) -> bool:
        """True: it measures perplexities."""
        return True

    def work(self, windows: Windows, linears: int) -> Work:
        """A model run whole for each trial."""
        models = self.trials
        return Work(models * windows.calibration[: self.windows].numel(), head=1)

    def holds(self, windows: Windows) -> Holds:
        """The states before the first block."""
        return holds(windows.calibration[: self.windows], prefixes=False, divergence=False)

    def allocate(self, problem: Problem) -> Allocation:
        """The ranks of the best trial, with a note of its perplexity."""
        run, world = problem.run, problem.spectra.model.decoder.world
        damage = Damage(problem.spectra, windows=self.windows, prefixes=False)
        names = [f"block {index}" for index in problem.by_block()]
        file = run.pieces.file("study.journal")
        storage = self.storage or (str(file) if file else None)
        with quiet(), disk_errors(Path(storage or "")):
            study: Any = self._study(problem, storage) if world.main else None
            done = world.from_main(lambda: completed(study))
            for _ in run.track(range(done, self.trials), lambda: progress(study), max(self.trials - done, 0)):
                trial = world.from_main(lambda: self._ask(study, names, self._seed(problem)))
                if trial is None:
                    break  # other processes have finished the study
                value = damage.nats(fit_ranks(problem, block_shares(problem, trial[1])))
                if world.main:
                    study.tell(trial[0], value)
            shares, note = world.from_main(lambda: best_of(study, names))
        return Allocation(fit_ranks(problem, block_shares(problem, shares)), (note,))

    def _study(self, problem: Problem, storage: str | None) -> Any:
        return open_study(storage, self._identity(problem), shared=self.storage is not None)

    def _seed(self, problem: Problem) -> int:
        return int(problem.spectra.evidence.windows.record["seed"]) if self.seed is None else self.seed

    def _ask(self, study: Any, names: list[str], seed: int) -> tuple[int, list[float]] | None:
        """The next trial's number and values, None once `trials` are completed."""
        if completed(study) >= self.trials:
            return None
        trial = next_trial(study, self.sampler, seed, names, self.low)
        return trial.number, [trial.params[name] for name in names]

    def _identity(self, problem: Problem) -> dict[str, Any]:
        spectra = problem.spectra
        identity = {
            "model": fingerprint(spectra.model.decoder)["sha256"],
            "linears": list(spectra.model.linears),
            "keep": problem.keep,
            "budget": problem.budget,
            **{f"calibration.{key}": value for key, value in spectra.evidence.windows.record.items()},
            "metric": spectra.metric.model_dump(mode="json"),
            "route": spectra.route,
            "form": problem.form.model_dump(mode="json"),
            **{f"allocate.{key}": value for key, value in self.model_dump(mode="json", exclude=RESUMABLE).items()},
            "allocate.seed": self._seed(problem),
        }
        return dict(json.loads(json.dumps(identity)))


def best_of(study: Any, names: list[str]) -> tuple[list[float], str]:
    """The best trial's values (blocks,), and a note of its perplexity."""
    (number, best), perplexity = best_trial(study), exp(study.best_value)
    note = f"Perplexity {perplexity:.2f} on the calibration windows, by trial {number}, the best of {completed(study)}."
    return [best.params[name] for name in names], note


def progress(study: Any) -> str:
    """The progress bar's text, with the best perplexity so far where this process has the study."""
    best = best_value(study) if study else None
    return "searching" if best is None else f"searching, best perplexity {exp(best):.3f}"


def block_shares(problem: Problem, values: list[float]) -> dict[Unit, float]:
    """The share of every linear: min(1, t v) of its block's value v, with t such that the budget is spent.

    values: one for each block that has linears, in order.
    """
    blocks = problem.by_block()
    sizes = [sum(unit.parameters for unit in units) for units in blocks.values()]
    scaled = scale(sizes, values, problem.keep * problem.dense)
    return {unit: share for units, share in zip(blocks.values(), scaled, strict=True) for unit in units}


def scale(sizes: list[int], values: list[float], budget: float) -> list[float]:
    """min(1, t v) for each v > 0 of `values`, t such that sum(size * min(1, t v)) = budget <= sum(sizes)."""
    full: set[int] = set()
    while True:
        free = [i for i in range(len(values)) if i not in full]
        rest = budget - sum(sizes[i] for i in full)
        weight = sum(sizes[i] * values[i] for i in free)
        factor = rest / weight if weight else 0.0
        over = {i for i in free if factor * values[i] > 1}
        if not over:
            return [1.0 if i in full else factor * values[i] for i in range(len(values))]
        full |= over
