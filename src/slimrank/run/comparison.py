"""What the rows of a comparison share: moments, spectra, and the dense model's predictions."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import nn

from slimrank.calibrate import Moments, Text, Windows
from slimrank.evaluate import Reference, count_parameters, perplexities, stored_bytes
from slimrank.model.decoder import Decoder, set_module
from slimrank.model.linear import shape_of
from slimrank.model.load import Loaded
from slimrank.plan import Plan
from slimrank.recipe import Recipe
from slimrank.run.compress import allocated, with_notes
from slimrank.run.estimate import Estimate, estimate, evaluation
from slimrank.run.pipeline import calibrate, decompose_all, factorize, rebuilt, refine
from slimrank.run.rows import Row
from slimrank.run.session import Session
from slimrank.runtime.digests import sha256_of_json, sha256_of_text
from slimrank.runtime.track import Track
from slimrank.spectrum.decomposition import Decomposition
from slimrank.store.disk_weights import DiskWeights
from slimrank.store.pieces import DiskPieces, MemoryPieces
from slimrank.store.view import View

T = TypeVar("T")
Run = tuple[Recipe, float]


@dataclass
class Comparison:
    """What the rows share.

    judging: the options of `perplexity`; decompositions: those of metrics whose route gives them whole, as many as fit
    into `room` bytes where the pieces are on disk.
    """

    loaded: Loaded
    decoder: Decoder
    linears: list[dict[str, nn.Module]]
    windows: Windows
    texts: Sequence[Text]
    judging: dict[str, Any]
    pieces: MemoryPieces | DiskPieces
    track: Track
    room: int
    decompositions: dict[str, dict[str, Decomposition]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.first = Reference(self.decoder, self.decoder.states_room)

    def expected(self, runs: Sequence[Run]) -> Estimate:
        """What the comparison takes: memory of the most demanding step, disk and time of all."""
        each = {
            sha256_of_json(recipe.model_dump(mode="json")): estimate(
                self.decoder, self.linears, self.windows.calibration, gradients=recipe.gradients, refine=recipe.refine,
                whole=recipe.allocate.whole_model, bases=bases(recipe) and recipe.metric.route == "projector",
                joins=recipe.form.joins,
            )
            for recipe, _ in runs
        }  # fmt: skip
        judged = evaluation(self.decoder, self.judging["window"])
        largest = max([judged, *each.values()], key=lambda one: one.memory)
        disk, seconds = sum(one.disk for one in each.values()), sum(one.seconds for one in each.values())
        return replace(largest, disk=disk, seconds=seconds)

    def dense(self) -> Row:
        """The row of the model as it is, which the others are held against."""
        dense = sum(rows * columns for block in self.linears for rows, columns in map(shape_of, block.values()))
        return self.judged("dense", 1.0, dense, 0.0)

    def row(self, recipe: Recipe, keep: float) -> Iterator[Row]:
        """A recipe's one row at a keep, of this process, while the model is the row's, or of one that was killed."""
        own = self.name_of(recipe, keep)
        if f"rows/{own}" in self.pieces:
            yield Row.of(self.pieces.load(f"rows/{own}")[1])
            return
        shared = {"inputs": "inputs", "held-out": "held-out", "gradients": f"gradients/{self.gradients_of(recipe)}"}
        metric = self.metric_of(recipe, keep)
        view = View(self.pieces, f"work/{own}", shared | {"curves": f"curves/{metric}"})
        moments, held_out, calibrated = self.calibrated(recipe, view)
        session = Session(
            self.decoder, self.linears, self.windows, recipe.metric, recipe.form, keep, moments, held_out,
            track=self.track, pieces=view, bases=bases(recipe),
        )  # fmt: skip
        with dense_afterwards(session):
            with self.sharing(session, metric):
                _, decomposed = self.timed(f"curves/{metric}/seconds", lambda: decompose_all(session))
                started = time.perf_counter()
                plan = with_notes(allocated(session, recipe), self.loaded.notes)
                plan = refine(session, factorize(session, plan, build=not rebuilt(recipe)))
            seconds = calibrated + decomposed + time.perf_counter() - started
            row = self.judged(recipe.name, keep, plan.budget.used, seconds, plan)
            if self.pieces.lasting:
                self.pieces.save(f"rows/{own}", {}, row.facts())
            self.pieces.clear(f"work/{own}")
            yield row

    @contextmanager
    def sharing(self, session: Session, metric: str) -> Iterator[None]:
        """The session has the decompositions of its metric that other rows made, and leaves its own for them."""
        if session.metric.route == "projector":  # which makes what is asked for anew from the spectra
            yield
            return
        if self.pieces.lasting:
            others = (held for name, held in self.decompositions.items() if name != metric)
            session.decompositions.room = self.room - sum(one.nbytes for held in others for one in held.values())
        session.decompositions.update(self.decompositions.get(metric, {}))
        yield
        self.decompositions[metric] = dict(session.decompositions)

    def let_go(self, recipe: Recipe, keep: float, later: Sequence[Run]) -> None:
        """Drop the spectra of a run that none of the later ones shares."""
        metric = self.metric_of(recipe, keep)
        if metric not in {self.metric_of(*run) for run in later}:
            self.pieces.clear(f"curves/{metric}")
            self.decompositions.pop(metric, None)

    def judged(self, recipe: str, keep: float, used: int, seconds: float, plan: Plan | None = None) -> Row:
        """The row of the model as it is now."""
        loaded, decoder = self.loaded, None if self.loaded.weights is None else self.decoder
        options = self.judging | {"first": self.first, "is_first": plan is None, "decoder": decoder}
        measured = perplexities(loaded, self.texts, track=self.track, **options)
        size = stored_bytes(loaded.model, loaded.dtype)
        return Row(recipe, keep, measured, used, count_parameters(loaded.model), size, seconds, plan)

    def calibrated(self, recipe: Recipe, view: View) -> tuple[Moments, Moments, float]:
        """The moments that a recipe needs, of the calibration windows and the held-out ones, and the seconds of it."""
        asked: dict[str, Any] = {"pieces": view, "track": self.track}
        found, seconds = self.timed(
            "seconds/inputs", lambda: calibrate(self.decoder, self.windows, self.linears, **asked)
        )
        if recipe.gradients:
            asked |= {"labels": recipe.metric.gradient_labels, "of_weights": recipe.weight_gradients}
            asked["gradients_on"] = recipe.gradient_windows(self.windows.calibration)
            found, more = self.timed(
                f"seconds/gradients/{self.gradients_of(recipe)}",
                lambda: calibrate(self.decoder, self.windows, self.linears, **asked),
            )
            seconds += more
        return *found, seconds

    def timed(self, key: str, run: Callable[[], T]) -> tuple[T, float]:
        """What `run` gives, and the seconds that it took when it was first run."""
        started = time.perf_counter()
        found = run()
        if key not in self.pieces:
            self.pieces.save(key, {}, {"seconds": time.perf_counter() - started})
        return found, self.pieces.load(key)[1]["seconds"]

    def gradients_of(self, recipe: Recipe) -> str:
        """A name for the gradients that a recipe asks for."""
        count = len(recipe.gradient_windows(self.windows.calibration))
        return f"{recipe.metric.gradient_labels}-{count}-{'weights' if recipe.weight_gradients else 'outputs'}"

    def metric_of(self, recipe: Recipe, keep: float) -> str:
        """A name for the spectra of a run, the same for runs that have the same."""
        metric = recipe.metric
        gradients = self.gradients_of(recipe) if metric.gradients else None
        of = [metric.model_dump(mode="json"), gradients, recipe.form.joins, bases(recipe), metric.of_keep and keep]
        return sha256_of_json(of)[:16]

    def name_of(self, recipe: Recipe, keep: float) -> str:
        """A name for a run's row, which tells it from rows of other recipes and texts."""
        texts = [[text.source, sha256_of_text(text.text)] for text in self.texts]
        return sha256_of_json([recipe.model_dump(mode="json"), keep, texts, self.judging])[:16]


def bases(recipe: Recipe) -> bool:
    """Whether a recipe's decompositions will be asked for, and not their curves alone."""
    return recipe.allocate.whole_model or not rebuilt(recipe)


@contextmanager
def dense_afterwards(session: Session) -> Iterator[None]:
    """Whatever is done to the model inside, its dense linears and all its other parameters come back."""
    model, weights = session.decoder.model, session.decoder.weights
    inside = {id(p) for dense in session.dense.values() for p in dense.parameters()}
    others = [
        (module, leaf, parameter, parameter.detach().clone())
        for module in model.modules()
        for leaf, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in inside and not isinstance(weights, DiskWeights)
    ]
    try:
        yield
    finally:
        for name, dense in session.dense.items():
            set_module(model, name, dense)
        if isinstance(weights, DiskWeights):
            weights.forget()
        with torch.no_grad():
            for module, leaf, parameter, value in others:
                module._parameters[leaf] = parameter.copy_(value)
