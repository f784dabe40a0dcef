"""What the rows of a comparison share: moments, spectra, and the dense model's predictions."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from slimrank.calibrate import Text, Windows
from slimrank.calibrate.evidence import Evidence, calibrate
from slimrank.calibrate.needs import Needs
from slimrank.evaluate import Reference, count_parameters, perplexities, stored_bytes
from slimrank.model.compressible import Compressible
from slimrank.model.decoder import set_module
from slimrank.model.load import Loaded
from slimrank.plan import Plan
from slimrank.recipe import Recipe
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
Asked = tuple[Recipe, float]
"""A recipe at a keep."""


@dataclass
class Comparison:
    """What the rows share.

    judging: the options of `perplexity`; held: decompositions by metric, of those whose route gives them whole, as many
    as fit into `room` bytes where the pieces are on disk; rows: what is to be compared.
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

    def expected(self) -> Estimate:
        """What the comparison takes: memory of the most demanding step, disk and time of all."""
        each = {
            sha256_of_json(recipe.model_dump(mode="json")): estimate(self.model, self.windows.calibration, recipe)
            for recipe, _ in self.rows
        }
        judged = evaluation(self.model.decoder, self.judging["window"])
        largest = max([judged, *each.values()], key=lambda one: one.memory)
        disk, seconds = sum(one.disk for one in each.values()), sum(one.seconds for one in each.values())
        return replace(largest, disk=disk, seconds=seconds)

    def dense(self) -> Row:
        """The row of the model as it is, which the others are held against."""
        return self.judged("dense", 1.0, sum(unit.parameters for unit in self.model.units.values()), 0.0)

    def row(self, recipe: Recipe, keep: float) -> Iterator[Row]:
        """A recipe's one row at a keep, of this process, while the model is the row's, or of one that was killed."""
        own = self.name_of(recipe, keep)
        if f"rows/{own}" in self.pieces:
            yield Row.of(self.pieces.load(f"rows/{own}")[1])
            return
        metric, run = self.metric_of(recipe, keep), self.run_of(recipe, keep)
        evidence, calibrated = self.calibrated(recipe, run)
        with dense_afterwards(self.model):
            held = self.held_for(recipe, metric)
            spectra, decomposed = self.timed(
                f"curves/{metric}/seconds",
                lambda: decompose(self.model, evidence, recipe, keep=keep, held=held, run=run),
            )
            started = time.perf_counter()
            plan = allocated(spectra, recipe, keep, run).with_notes(self.loaded.notes)
            plan = refine(spectra, factorize(spectra, plan, run), run)
            seconds = calibrated + decomposed + time.perf_counter() - started
            row = self.judged(recipe.name, keep, plan.budget.used, seconds, plan)
            if self.pieces.lasting:
                self.pieces.save(f"rows/{own}", {}, row.facts())
            self.pieces.clear(f"work/{own}")
            yield row

    def run_of(self, recipe: Recipe, keep: float) -> Run:
        """The run of a row, whose moments and spectra other rows share."""
        shared = {
            "inputs": f"inputs/{self.blocks_of(recipe)}",
            "held-out": "held-out",
            "gradients": f"gradients/{self.gradients_of(recipe.needs)}",
            "curves": f"curves/{self.metric_of(recipe, keep)}",
        }
        return Run(View(self.pieces, f"work/{self.name_of(recipe, keep)}", shared), self.track)

    def held_for(self, recipe: Recipe, metric: str) -> Decompositions | None:
        """The decompositions that rows of one metric share, None where they are made anew from the spectra."""
        if recipe.route == "projector":
            return None
        held = self.held.setdefault(metric, Decompositions())
        others = (one.nbytes for name, other in self.held.items() if name != metric for one in other.values())
        held.room = self.room - sum(others) if self.pieces.lasting else UNLIMITED
        return held

    def release(self, recipe: Recipe, keep: float, later: Sequence[Asked]) -> None:
        """Drop the spectra of a row that none of the later ones shares."""
        metric = self.metric_of(recipe, keep)
        if metric not in {self.metric_of(*row) for row in later}:
            self.pieces.clear(f"curves/{metric}")
            self.held.pop(metric, None)

    def judged(self, recipe: str, keep: float, used: int, seconds: float, plan: Plan | None = None) -> Row:
        """The row of the model as it is now."""
        loaded, decoder = self.loaded, None if self.loaded.weights is None else self.model.decoder
        options = self.judging | {"first": self.first, "is_first": plan is None, "decoder": decoder}
        measured = perplexities(loaded, self.texts, track=self.track, **options)
        size = stored_bytes(loaded.model, loaded.dtype)
        return Row(recipe, keep, measured, used, count_parameters(loaded.model), size, seconds, plan)

    def calibrated(self, recipe: Recipe, run: Run) -> tuple[Evidence, float]:
        """The evidence that a recipe needs, and the seconds of it."""
        needs, spent = recipe.needs, blocks_with_curves(self.model, run.pieces)
        inputs = Needs(blocks=self.blocks_of(recipe) == "blocks")
        found, seconds = self.timed(
            f"seconds/inputs/{self.blocks_of(recipe)}",
            lambda: calibrate(self.model, self.windows, inputs, run, spent),
        )
        if needs.gradients:
            found, more = self.timed(
                f"seconds/gradients/{self.gradients_of(needs)}",
                lambda: calibrate(self.model, self.windows, needs | inputs, run, spent),
            )
            seconds += more
        return found, seconds

    def timed(self, key: str, run: Callable[[], T]) -> tuple[T, float]:
        """What `run` gives, and the seconds that it took when it was first run."""
        started = time.perf_counter()
        found = run()
        if key not in self.pieces:
            self.pieces.save(key, {}, {"seconds": time.perf_counter() - started})
        return found, self.pieces.load(key)[1]["seconds"]

    def blocks_of(self, recipe: Recipe) -> str:
        """Whether the blocks' outputs are summed with the inputs, for this recipe or another, as a name."""
        return "blocks" if any(one.needs.blocks for one in (recipe, *(row[0] for row in self.rows))) else "linears"

    def gradients_of(self, needs: Needs) -> str:
        """A name for the gradients that a recipe asks for."""
        count = len(needs.gradient_windows(self.windows.calibration))
        return f"{needs.labels}-{count}-{'weights' if needs.of_weights else 'outputs'}"

    def metric_of(self, recipe: Recipe, keep: float) -> str:
        """A name for the spectra of a row, the same for rows that have the same."""
        metric = recipe.metric
        gradients = self.gradients_of(recipe.needs) if metric.needs.gradients else None
        asked = [recipe.route, recipe.form.stacks, recipe.cuts_later, metric.depends_on_keep and keep]
        return sha256_of_json([metric.model_dump(mode="json"), gradients, *asked])[:16]

    def name_of(self, recipe: Recipe, keep: float) -> str:
        """A name for a row, which tells it from rows of other recipes and texts."""
        texts = [[text.source, sha256_of_text(text.text)] for text in self.texts]
        return sha256_of_json([recipe.model_dump(mode="json"), keep, texts, self.judging])[:16]


@contextmanager
def dense_afterwards(compressible: Compressible) -> Iterator[None]:
    """Whatever is done to the model inside, its dense linears and all its other parameters come back."""
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
        for name, dense in compressible.linears.items():
            set_module(model, name, dense)
        if isinstance(weights, DiskWeights):
            weights.forget()
        with torch.no_grad():
            for module, leaf, parameter, value in others:
                module._parameters[leaf] = parameter.copy_(value)
