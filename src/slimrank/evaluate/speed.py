"""How fast models run side by side: prefill, time to first token, decoding, memory."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from slimrank.errors import UsageError
from slimrank.evaluate.decoding import decoder, first_token, prefill, prompt
from slimrank.evaluate.memory import peak_of
from slimrank.evaluate.roofline import Limits, measure_limits, reason
from slimrank.forms.embedding import Embedding, TiedHead
from slimrank.forms.quantized import QuantizedLinear
from slimrank.runtime.finite import require_finite
from slimrank.runtime.track import Track, no_track
from slimrank.texts.windows import context_length

JSON_VERSION = 1


@dataclass(frozen=True)
class Asked:
    """What to measure: a prompt of `tokens`, decoding at `batches`, medians of `rounds` of `steps` steps each.

    compiled: decode by torch.compile.
    """

    tokens: int = 512
    batches: tuple[int, ...] = (1, 8, 32)
    steps: int = 8
    rounds: int = 5
    compiled: bool = False


@dataclass
class Speed:
    """One model's medians. Seconds of a prefill, of the first token, and of a decoding step by batch.

    weights: bytes of its tensors; read: numbers that a token is multiplied with; peak: bytes, weights included, or None
    where the system doesn't tell.
    """

    name: str
    weights: int
    read: int
    peak: int | None = None
    prefill: float = 0.0
    first: float = 0.0
    decode: dict[int, float] = field(default_factory=dict)

    def seconds(self, tokens: int) -> dict[str, tuple[int, float]]:
        """By label, how many tokens went through the weights at once, and the seconds it took."""
        rows = {"prefill": (tokens, self.prefill), "first token": (tokens, self.first)}
        return rows | {f"decode {batch}": (batch, seconds) for batch, seconds in self.decode.items()}


@dataclass(frozen=True)
class Bench:
    """The outcome: models in the order given, the first being the reference, and the machine's limits."""

    asked: Asked
    speeds: list[Speed]
    limits: Limits
    settings: dict[str, Any]

    def notes(self) -> list[str]:
        """A sentence for every measure in which a model gains less than half of what its size would allow, and why."""
        first, found = self.speeds[0], []
        for own in self.speeds[1:]:
            theirs = first.seconds(self.asked.tokens)
            for label, (tokens, seconds) in own.seconds(self.asked.tokens).items():
                why = reason(first.read / own.read, theirs[label][1] / seconds, self.limits, own.read, tokens, seconds)
                if why:
                    found.append(f"{own.name}, {label}: {why}")
        return found

    def to_json(self) -> str:
        """{"version", "settings", "limits", "models": [{name, weights, read, peak, prefill, first, decode}], "notes"}.

        Seconds, bytes, and bytes or operations per second.
        """
        settings = {**asdict(self.asked), **self.settings}
        models = [asdict(speed) for speed in self.speeds]
        record = {"settings": settings, "limits": asdict(self.limits), "models": models, "notes": self.notes()}
        require_finite(record, "The bench")
        return json.dumps({"version": JSON_VERSION, **record}, indent=2) + "\n"


@torch.inference_mode()
def bench(
    models: Mapping[str, PreTrainedModel], asked: Asked, settings: dict[str, Any], track: Track = no_track
) -> Bench:
    """Measure `models`, all on one device and in one dtype, taking turns in every round, after a warm-up each."""
    for name, model in models.items():
        _check_room(name, model, asked)
    speeds = [Speed(name, _bytes(model), read_numbers(model)) for name, model in models.items()]
    for speed, model in zip(speeds, models.values(), strict=True):
        ids = prompt(model, asked.tokens)
        extra = peak_of(lambda model=model, ids=ids: prefill(model, ids), model.device)  # type: ignore[misc]
        speed.peak = None if extra is None else speed.weights + extra
    todo: list[tuple[str, Any]] = [("prefill", prefill), ("first", first_token)]
    for name, run in todo:
        calls = [_bound(run, model, prompt(model, asked.tokens)) for model in models.values()]
        for speed, seconds in zip(speeds, _medians(calls, asked.rounds, 1, track, name), strict=True):
            setattr(speed, name, seconds)
    for batch in asked.batches:
        steps = asked.steps * (asked.rounds + 1)
        calls = [decoder(model, asked.tokens, batch, steps, asked.compiled) for model in models.values()]
        found = _medians(calls, asked.rounds, asked.steps, track, f"decode {batch}")
        for speed, seconds in zip(speeds, found, strict=True):
            speed.decode[batch] = seconds
    model = next(iter(models.values()))
    return Bench(asked, speeds, measure_limits(model.device, model.dtype), settings)


def _check_room(name: str, model: PreTrainedModel, asked: Asked) -> None:
    """Raise a UsageError when prompt and decoded tokens are beyond the model's context."""
    context, wanted = context_length(model.config), asked.tokens + asked.steps * (asked.rounds + 1)
    if context is not None and wanted > context:
        raise UsageError(
            f"--tokens {asked.tokens} and {asked.steps} --steps in {asked.rounds} --rounds and a warm-up are {wanted} "
            f"tokens, beyond the context of {name}, {context}: ask for fewer."
        )


def _bound(run: Callable[[PreTrainedModel, Tensor], Any], model: PreTrainedModel, ids: Tensor) -> Callable[[], Any]:
    return lambda: run(model, ids)


def _medians(calls: Sequence[Callable[[], Any]], rounds: int, steps: int, track: Track, label: str) -> list[float]:
    """Median seconds of one call of each, `steps` calls at a time in turns, the first turn being the warm-up."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in track(range(rounds + 1), label, rounds + 1):
        for call, own in zip(calls, times, strict=True):
            synchronize()
            started = time.perf_counter()
            for _ in range(steps):
                call()
            synchronize()
            own.append((time.perf_counter() - started) / steps)
    return [statistics.median(own[1:]) for own in times]


def synchronize() -> None:
    """Wait for the CUDA device, where one is used."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def read_numbers(model: PreTrainedModel) -> int:
    """Weights that every token is multiplied with: all matrices but an embedding that is only looked up in."""
    looked_up, head = model.get_input_embeddings(), model.get_output_embeddings()
    skipped = {id(p) for p in looked_up.parameters()} - ({id(p) for p in head.parameters()} if head else set())
    floats = sum(p.numel() for p in model.parameters() if p.ndim > 1 and id(p) not in skipped)
    only = id(looked_up.table) if isinstance(looked_up, Embedding) and not isinstance(head, TiedHead) else None
    whole = [m for m in model.modules() if isinstance(m, QuantizedLinear) and id(m) != only]
    return floats + sum(m.out_features * m.in_features for m in whole)
