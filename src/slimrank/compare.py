"""Compare recipes at several keeps on one model: calibrated once, every row made from the same moments."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.calibrate import Moments, Text, Windows, collect_gradients
from slimrank.calibrate.reading import Reading, read_windows
from slimrank.evaluate import Perplexity, Reference, count_parameters, perplexities, stored_bytes, text_json
from slimrank.limits import Limits
from slimrank.linear import weight_of
from slimrank.load import Loaded, require_dense
from slimrank.model import Decoder, require_finite_weights, set_module
from slimrank.pipeline import calibrate, decompose_all, factorize, make_plan, refine
from slimrank.plan import Plan
from slimrank.progress import Track, no_track
from slimrank.recipe import Recipe
from slimrank.session import Session

JSON_VERSION = 1


@dataclass(frozen=True)
class Row:
    """One recipe at one keep, or the dense model (plan None, keep 1).

    parameters: of the linears and of the whole model; bytes: of the weights in the stored dtype; seconds: what this
    row would have taken alone, loading and evaluating left out.
    """

    recipe: str
    keep: float
    texts: dict[str, Perplexity]
    linears: int
    parameters: int
    bytes: int
    seconds: float
    plan: Plan | None = None


@dataclass
class Calibration:
    """The moments that rows share, with gradients for each kind and number that was asked for, and their seconds."""

    decoder: Decoder
    linears: list[dict[str, nn.Module]]
    windows: Windows
    moments: Moments
    held_out: Moments
    seconds: float
    track: Track

    def __post_init__(self) -> None:
        self._gradients: dict[tuple[str, int], tuple[Moments, float]] = {}

    def moments_for(self, recipe: Recipe) -> tuple[Moments, float]:
        """The moments that the recipe needs, and the seconds that they take."""
        if not recipe.gradients:
            return self.moments, self.seconds
        labels, ids = recipe.metric.gradient_labels, recipe.gradient_windows(self.windows.calibration)
        kind = labels, len(ids)
        if kind not in self._gradients:
            started, moments = time.perf_counter(), replace(self.moments, outputs={})
            collect_gradients(
                self.decoder,
                ids,
                self.linears,
                moments,
                labels=labels,
                seed=self.windows.record["seed"],
                track=self.track,
            )
            self._gradients[kind] = (moments, time.perf_counter() - started)
        moments, seconds = self._gradients[kind]
        return moments, self.seconds + seconds


def compare(
    loaded: Loaded,
    runs: Sequence[tuple[Recipe, float]],
    texts: Sequence[Text],
    reading: Reading,
    *,
    max_windows: int | None = None,
    special_tokens: bool = True,
    track: Track = no_track,
) -> Iterator[Row]:
    """The dense model's row, then one for each run, a recipe at a keep, as it is done; the model ends as it began."""
    require_dense(loaded)
    require_finite_weights(loaded.model)
    decoder = Decoder(loaded.model)
    linears, windows = decoder.linears(), read_windows(loaded, reading)
    options: dict[str, Any] = {"max_windows": max_windows, "special_tokens": special_tokens, "track": track}
    options |= {
        "window": windows.calibration.shape[1],
        "first": Reference(decoder, Limits.of(None, str(decoder.device)).states),
    }

    def row(recipe: str, keep: float, used: int, seconds: float, plan: Plan | None = None) -> Row:
        measured = perplexities(loaded, texts, is_first=plan is None, **options)
        size = stored_bytes(loaded.model, loaded.dtype)
        return Row(recipe, keep, measured, used, count_parameters(loaded.model), size, seconds, plan)

    yield row("dense", 1.0, sum(weight_of(m).numel() for block in linears for m in block.values()), 0.0)
    started = time.perf_counter()
    moments, held_out = calibrate(decoder, windows, linears, track=track)
    shared = Calibration(decoder, linears, windows, moments, held_out, time.perf_counter() - started, track)
    for recipe, keep in runs:
        found, calibrated = shared.moments_for(recipe)
        started = time.perf_counter()
        session = Session(decoder, linears, windows, recipe.metric, recipe.form, keep, found, held_out, track=track)
        with dense_afterwards(session):
            decompose_all(session)
            plan = refine(session, factorize(session, make_plan(session, recipe)))
            seconds = calibrated + time.perf_counter() - started
            yield row(recipe.name, keep, plan.budget.used, seconds, plan)


@contextmanager
def dense_afterwards(session: Session) -> Iterator[None]:
    """Whatever is done to the model inside, its dense linears and all its other parameters come back."""
    model = session.decoder.model
    inside = {id(p) for dense in session.dense.values() for p in dense.parameters()}
    others: list[tuple[nn.Parameter, Tensor]] = [
        (p, p.detach().clone()) for p in model.parameters() if id(p) not in inside
    ]
    try:
        yield
    finally:
        for name, dense in session.dense.items():
            set_module(model, name, dense)
        with torch.no_grad():
            for parameter, value in others:
                parameter.copy_(value)


def to_json(rows: Sequence[Row], settings: dict[str, Any]) -> str:
    """{"version", "settings", "rows": [{"recipe", "keep", "texts", "nats_lost", "linears", ..., "plan"}]}.

    texts: as in the JSON of evaluate, the dense model being the first one.
    """
    dense = rows[0].texts
    plain = []
    for row in rows:
        texts = {text: text_json(found, dense[text]) for text, found in row.texts.items()}
        lost = {"nats_lost": {text: found["nats_lost"] for text, found in texts.items()}}
        plan = {"plan": row.plan.model_dump(mode="json") if row.plan else None}
        plain.append(asdict(replace(row, texts={}, plan=None)) | {"texts": texts} | lost | plan)
    return json.dumps({"version": JSON_VERSION, "settings": settings, "rows": plain}, indent=1) + "\n"
