"""Perplexity as the literature counts it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.functional import cross_entropy, pad

from slimrank.calibrate.texts import Text
from slimrank.calibrate.tokens import encode, require_embedded
from slimrank.errors import SlimrankError, UsageError
from slimrank.progress import Track, no_track

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_TOKENS = 4096
BATCH_LOGITS = 2**26


@dataclass(frozen=True)
class Perplexity:
    """exp(nats); `nats` is the mean negative log-likelihood over `tokens` predicted tokens, window - 1 a window."""

    perplexity: float
    nats: float
    tokens: int
    windows: int
    window: int


def perplexity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: Text,
    *,
    window: int,
    max_windows: int | None = None,
    special_tokens: bool = True,
    batch_size: int | None = None,
    track: Track = no_track,
) -> Perplexity:
    """Measure the perplexity of a text: one tokenizer call, windows without overlap, the remainder dropped.

    `max_windows` keeps the first ones only; `batch_size` (windows) changes speed and memory, not the measure. Raises
    SlimrankError when the text yields no window, the tokenizer knows more than the model, or a logit is not finite;
    UsageError for a window below 2.
    """
    windows = text_windows(tokenizer, text, window, max_windows, special_tokens)
    require_embedded(windows, model)
    batches = windows.split(batch_size or _batch_size(window, _vocabulary(model)))
    total = torch.zeros((), dtype=torch.float64)
    done = 0
    with _evaluating(model), torch.inference_mode():
        for batch in track(batches, f"Perplexity on {text.source}", len(batches)):
            total += _checked(_losses(model, batch), done, text.source).sum()
            done += len(batch)
    tokens = windows.shape[0] * (window - 1)
    nats = total.item() / tokens
    return Perplexity(_exp(nats), nats, tokens, windows.shape[0], window)


def text_windows(
    tokenizer: "PreTrainedTokenizerBase", text: Text, window: int, max_windows: int | None, special_tokens: bool
) -> Tensor:
    """The text's windows without overlap, the first `max_windows` of them: (windows, window) ids, int64.

    Raises as `perplexity` does.
    """
    if window < 2:
        raise UsageError(f"--window {window} leaves no token to predict: give at least 2")
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"--max-windows {max_windows} leaves nothing to measure: give at least 1")
    ids = encode(tokenizer, [text.text], special_tokens)[0]
    if len(ids) < window:
        raise SlimrankError(
            f"{text.source} holds {len(ids)} tokens, not one window of {window}: give a smaller --window or more text"
        )
    count = min(len(ids) // window, max_windows or len(ids))
    return torch.tensor(ids[: count * window], dtype=torch.int64).view(count, window)


def _losses(model: "PreTrainedModel", batch: Tensor) -> Tensor:
    """The summed negative log-likelihood of each window, (windows,) float64; NaN where a logit is not finite."""
    batch = batch.to(_device(model))
    logits = model(input_ids=batch, use_cache=False).logits.float()
    # the last position predicts beyond the window; masking it spares a copy of the logits
    targets = pad(batch[:, 1:], (0, 1), value=-100).to(logits.device)
    losses = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(batch.shape).double().sum(1)
    return losses.where(logits.isfinite().flatten(1).all(1), math.nan).cpu()


def _checked(losses: Tensor, first: int, source: str) -> Tensor:
    bad = losses.isfinite().logical_not().nonzero()
    if len(bad):
        raise SlimrankError(
            f"The model's logits are not finite on window {first + int(bad[0]) + 1} of {source}:"
            " check its weights or load it in a wider dtype"
        )
    return losses


def _batch_size(window: int, vocabulary: int) -> int:
    return max(1, min(BATCH_TOKENS // window, BATCH_LOGITS // (window * vocabulary)))


def _vocabulary(model: "PreTrainedModel") -> int:
    return int(model.config.get_text_config().vocab_size)


def _device(model: Module) -> torch.device:
    """Where the inputs go: the first parameter that is not offloaded."""
    return next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))


@contextmanager
def _evaluating(model: Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
