"""The rows of a comparison, which share moments, spectra and the dense model's predictions."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import torch

from slimrank.budget.asked import BudgetOptions, budget_of
from slimrank.calibrate import Text, Windows
from slimrank.calibrate.evidence import Evidence, calibrate
from slimrank.calibrate.needs import Needs
from slimrank.evaluate import Reference, count_parameters, perplexities, stored_bytes
from slimrank.model.compressible import Compressible
from slimrank.model.load import Loaded
from slimrank.model.modules import set_module
from slimrank.plan import Plan
from slimrank.recipe import Recipe
from slimrank.rounding.price import Pricing
from slimrank.run.estimate import Estimate, estimate, evaluation
from slimrank.run.job import allocated
from slimrank.run.rows import Row
from slimrank.run.steps import decompose, factorize, refine
from slimrank.runtime.digests import sha256_of_json, sha256_of_text
from slimrank.runtime.track import Track
from slimrank.spectrum.decompose import blocks_with_curves
from slimrank.spectrum.spectra import Decompositions
from slimrank.store.disk_weights import DiskWeights
from slimrank.store.pieces import DiskPieces, MemoryPieces
from slimrank.store.run import UNLIMITED, Run
from slimrank.store.view import View

T = TypeVar("T")


class Asked(NamedTuple):
    """A row to make: a recipe, and the share of parameters that stays, or the bytes that the weights may take."""

    recipe: Recipe
    keep: float = 1.0
    size: int | None = None

    @property
    def pricing(self) -> Pricing | None:
        """What rounding has to be priced, under a budget of bytes."""
        return None if self.size is None else self.recipe.pricing


@dataclass
class Comparison:
    """The state that the rows share.

    judging: options of `perplexities`; rows: what to compare; held: decompositions by metric, of the
    routes that compute them whole, within `room` bytes if pieces are on disk.
    """

    loaded: Loaded
    model: Compressible
    windows: Windows
    texts: Sequence[Text]
    judging: dict[str, Any]
    pieces: MemoryPieces | DiskPieces
    track: Track
    room: int
    rows: Sequence[Asked]
    held: dict[str, Decompositions] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = Reference(self.model.decoder, self.model.decoder.states_room)

    @property
    def sized(self) -> bool:
        """Whether any row has a budget of bytes, which embedding and head are then priced for."""
        return any(row.size is not None for row in self.rows)

    def expected(self) -> Estimate:
        """The estimate of the comparison: memory of the largest step, disk and seconds of all rows."""
        each = {
            sha256_of_json(recipe.model_dump(mode="json")): estimate(self.model, self.windows, recipe)
            for recipe, *_ in self.rows
        }
        judged = evaluation(self.model.decoder, self.judging["window"])
        largest = max([judged, *each.values()], key=lambda estimate: estimate.memory)
        disk, seconds = sum(row.disk for row in each.values()), sum(row.seconds for row in each.values())
        return replace(largest, disk=disk, seconds=seconds)

    def dense(self) -> Row:
        """The row of the dense model, which the others are compared with."""
        return self.judged("dense", 1.0, sum(unit.parameters for unit in self.model.units.values()), 0.0)

    def row(self, asked: Asked) -> Iterator[Row]:
        """Yield the row that is asked for, the model being compressed meanwhile, or the row that was saved."""
        recipe, keep, size = asked
        own = self.name_of(asked)
        if f"rows/{own}" in self.pieces:
            yield Row.of(self.pieces.load(f"rows/{own}")[1])
            return
        metric, run = self.metric_of(asked), self.run_of(asked)
        budget = budget_of(self.model, recipe, None, self.loaded.dtype, BudgetOptions(keep, size), run)
        evidence, calibrated = self.calibrated(recipe, run)
        with dense_afterwards(self.model):
            held = self.held_for(recipe, metric)
            spectra, decomposed = self.timed(
                f"curves/{metric}/seconds",
                lambda: decompose(self.model, evidence, recipe, keep=keep, held=held, pricing=asked.pricing, run=run),
            )

            def applied() -> Plan:
                plan = allocated(spectra, recipe, keep, run, budget).with_notes(self.loaded.notes)
                return refine(spectra, factorize(spectra, plan, run), run)

            plan, compressed = self.timed(f"work/{own}/seconds", applied)
            seconds = total(calibrated, decomposed, compressed)
            row = replace(self.judged(recipe.name, keep, plan.budget.used, seconds, plan), size=size)
            if self.pieces.lasting:
                self.pieces.save(f"rows/{own}", {}, row.facts())
            self.pieces.clear(f"work/{own}")
            yield row

    def run_of(self, asked: Asked) -> Run:
        """The Run of a row, whose moments and spectra are shared with other rows."""
        gradients = self.gradients_of(asked.recipe.needs)
        shared = {
            "inputs": f"inputs/{self.blocks_of(asked.recipe)}",
            "held-out": "held-out",
            "gradients": f"gradients/{gradients}",
            "ends": f"ends/{gradients}",
            "curves": f"curves/{self.metric_of(asked)}",
        }
        return Run(View(self.pieces, f"work/{self.name_of(asked)}", shared), self.track)

    def held_for(self, recipe: Recipe, metric: str) -> Decompositions | None:
        """The decompositions shared by rows of one metric, None for the projector route, which computes them again."""
        if recipe.route == "projector":
            return None
        held = self.held.setdefault(metric, Decompositions())
        others = (item.nbytes for name, other in self.held.items() if name != metric for item in other.values())
        held.room = self.room - sum(others) if self.pieces.lasting else UNLIMITED
        return held

    def release(self, asked: Asked, later: Sequence[Asked]) -> None:
        """Drop the spectra of a row, unless a later row shares them."""
        metric = self.metric_of(asked)
        if metric not in {self.metric_of(row) for row in later}:
            self.pieces.clear(f"curves/{metric}")
            self.held.pop(metric, None)

    def judged(self, recipe: str, keep: float, used: int, seconds: float | None, plan: Plan | None = None) -> Row:
        """Evaluate the model as it is now; used: parameters of the linears; seconds: what the row took."""
        loaded, decoder = self.loaded, None if self.loaded.weights is None else self.model.decoder
        options = self.judging | {"first": self.first, "is_first": plan is None, "decoder": decoder}
        measured = perplexities(loaded, self.texts, track=self.track, **options)
        size = stored_bytes(loaded.model, loaded.dtype)
        return Row(recipe, keep, measured, used, count_parameters(loaded.model), size, seconds, plan)

    def calibrated(self, recipe: Recipe, run: Run) -> tuple[Evidence, float | None]:
        """The evidence that a recipe needs, and the seconds that it took."""
        needs, spent = recipe.needs | Needs(ends=self.sized), blocks_with_curves(self.model, run.pieces)
        inputs = Needs(blocks=self.blocks_of(recipe).startswith("blocks"), all_experts=needs.all_experts)
        evidence, seconds = self.timed(
            f"seconds/inputs/{self.blocks_of(recipe)}",
            lambda: calibrate(self.model, self.windows, inputs, run, spent),
        )
        if needs.gradients:
            evidence, more = self.timed(
                f"seconds/gradients/{self.gradients_of(needs)}",
                lambda: calibrate(self.model, self.windows, needs | inputs, run, spent),
            )
            seconds = total(seconds, more)
        return evidence, seconds

    def timed(self, key: str, run: Callable[[], T]) -> tuple[T, float | None]:
        """The result of `run`, and the seconds that its first run took, saved under `key`; None if that was killed."""
        begun, started, known = f"{key}-begun", time.perf_counter(), key in self.pieces
        killed = begun in self.pieces
        if not known:
            self.pieces.save(begun, {})
        result = run()
        if not known:
            self.pieces.save(key, {}, {"seconds": None if killed else time.perf_counter() - started})
        return result, self.pieces.load(key)[1]["seconds"]

    def blocks_of(self, recipe: Recipe) -> str:
        """The name of the input moments that a recipe shares: with those of blocks if any recipe needs them."""
        recipes = recipe, *(other for other, *_ in self.rows)
        kind = "blocks" if any(other.needs.blocks for other in recipes) else "linears"
        return f"{kind}-all-experts" if recipe.needs.all_experts else kind

    def gradients_of(self, needs: Needs) -> str:
        """A name for the gradient moments that a recipe needs."""
        count = len(needs.gradient_windows(self.windows.calibration))
        ends = "-ends" if self.sized else ""
        return f"{needs.labels}-{count}-{'weights' if needs.of_weights else 'outputs'}{ends}"

    def metric_of(self, asked: Asked) -> str:
        """A name for the spectra of a row, equal for rows that can share them."""
        recipe, keep, _ = asked
        metric = recipe.metric
        gradients = self.gradients_of(recipe.needs) if metric.needs.gradients else None
        options = [
            recipe.route,
            recipe.form.stacks,
            recipe.form.shared,
            recipe.cuts_later,
            metric.depends_on_keep and keep,
            recipe.experts,
            asked.pricing and asdict(asked.pricing),
        ]
        return sha256_of_json([metric.model_dump(mode="json"), gradients, *options])[:16]

    def name_of(self, asked: Asked) -> str:
        """A name for a row, unique to its recipe, budget, texts and evaluation options."""
        texts = [[text.source, sha256_of_text(text.text)] for text in self.texts]
        return sha256_of_json([asked.recipe.model_dump(mode="json"), *asked[1:], texts, self.judging])[:16]


def total(*seconds: float | None) -> float | None:
    """Their sum, None if any is not known."""
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


@contextmanager
def dense_afterwards(compressible: Compressible) -> Iterator[None]:
    """Restore the dense linears and all other parameters of the model afterwards."""
    model, weights = compressible.decoder.model, compressible.decoder.weights
    inside = {id(p) for dense in compressible.linears.values() for p in dense.parameters()}
    others = [
        (module, leaf, parameter, parameter.detach().clone())
        for module in model.modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in inside and not isinstance(weights, DiskWeights)
    ]
    try:
        yield
    finally:
        for name, dense in {**compressible.linears, **compressible.outside}.items():
            set_module(model, name, dense)
        if isinstance(weights, DiskWeights):
            weights.forget()
        with torch.no_grad():
            for module, leaf, parameter, value in others:
                module._parameters[leaf] = parameter.copy_(value)
