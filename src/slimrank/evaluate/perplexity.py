"""Perplexity as the literature counts it."""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from slimrank.errors import SlimrankError, UsageError
from slimrank.evaluate.mean import Mean
from slimrank.evaluate.predictions import at_once, blockwise
from slimrank.evaluate.predictions import batch_size as batch_of
from slimrank.evaluate.reference import Reference
from slimrank.model.decoder import Decoder
from slimrank.model.modules import evaluating
from slimrank.numerics.losses import next_token_losses
from slimrank.runtime.digests import sha256_of_tensor
from slimrank.runtime.track import Track, no_track
from slimrank.texts.texts import Text
from slimrank.texts.tokens import SpecialTokens, beginning, check_special_tokens, encode, require_embedded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Perplexity:
    """exp(nats); `nats` is the mean negative log-likelihood over `tokens` predicted tokens, window - 1 a window.

    by_window: each window's own mean; kl_by_window: each window's KL(first || model) in nats a token, None where there
    is no first model or its predictions can't be compared; read: a hash of the windows' token ids;
    special_tokens: where the tokenizer's stood, as in SpecialTokens; "" in results of older versions.
    """

    perplexity: float
    nats: float
    tokens: int
    windows: int
    window: int
    by_window: Sequence[float] = field(default=(), repr=False)
    kl_by_window: Sequence[float] | None = field(default=None, repr=False)
    read: str = field(default="", repr=False)
    special_tokens: str = ""

    @classmethod
    def of(cls, facts: dict[str, Any]) -> "Perplexity":
        """From its fields, as JSON has them."""
        kl = facts["kl_by_window"]
        return cls(**facts | {"by_window": tuple(facts["by_window"]), "kl_by_window": kl if kl is None else tuple(kl)})

    @property
    def nats_stderr(self) -> float | None:
        """The standard error of `nats` over windows; None for fewer than two."""
        return Mean.of(self.by_window).stderr

    @property
    def perplexity_stderr(self) -> float | None:
        """That of `perplexity`, to first order."""
        stderr = self.nats_stderr
        return None if stderr is None else self.perplexity * stderr

    @property
    def kl(self) -> Mean | None:
        """KL(first || model) in nats a token."""
        return None if self.kl_by_window is None else Mean.of(self.kl_by_window)

    def lost(self, first: "Perplexity") -> Mean:
        """Nats a token more than the first model pays; the error is of the windows' own differences.

        None where the two have not read the same windows.
        """
        pairs = zip(self.by_window, first.by_window, strict=False)
        paired = Mean.of([own - other for own, other in pairs]).stderr if self.read == first.read else None
        return Mean(self.nats - first.nats, paired)


def perplexity(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    text: Text,
    *,
    window: int,
    max_windows: int | None = None,
    special_tokens: SpecialTokens = "text",
    batch_size: int | None = None,
    first: Reference | None = None,
    is_first: bool = False,
    decoder: Decoder | None = None,
    track: Track = no_track,
) -> Perplexity:
    """Measure the perplexity of a text: one tokenizer call, windows without overlap, the remainder dropped.

    special_tokens: whether the tokenizer's stand before the text once, as in the literature, or before every window.
    `max_windows` keeps the first ones only; `batch_size` (windows) changes speed and memory, not the measure. `first`:
    the model that the predictions are compared with, or where `is_first` says so, that this one is. `decoder`: its
    own, by which it runs a block at a time. Raises SlimrankError when the text yields no window, the tokenizer knows
    more than the model, or a logit is not finite; UsageError for a window below 2.
    """
    windows = text_windows(tokenizer, text, window, max_windows, special_tokens)
    require_embedded(windows, model)
    vocabulary = int(model.config.get_text_config().vocab_size)
    against = None if is_first or first is None or not first.has_read(text.source, windows, vocabulary) else first
    if against:
        batch_size = against.batch_size(text.source)  # so that equal models predict the same to the bit
    batches = windows.split(batch_size or batch_of(window, vocabulary, decoder))
    reading = first.reading(text.source, batches) if first and is_first else nullcontext()
    what = f"Perplexity on {text.source}"
    with evaluating(model), torch.no_grad(), reading:
        found = blockwise(decoder, batches, track, what) if decoder else at_once(model, batches, track, what)
        losses, kl = _read(batches, found, text.source, against)
    tokens = windows.shape[0] * (window - 1)
    nats = float(sum(batch.sum() for batch in losses)) / tokens
    by_window = tuple((torch.cat(losses) / (window - 1)).tolist())
    read = sha256_of_tensor(windows)
    placed = special_tokens if beginning(tokenizer) else "none"
    return Perplexity(_exp(nats), nats, tokens, len(windows), window, by_window, kl, read, placed)


def _read(
    batches: Sequence[Tensor], found: Iterable[Tensor], source: str, against: Reference | None
) -> tuple[list[Tensor], tuple[float, ...] | None]:
    """By batch, each window's summed loss (windows,) float64; and each window's KL(first || model) in nats a token."""
    losses: list[Tensor] = []
    kl: list[float] = []
    for number, (batch, logits) in enumerate(zip(batches, found, strict=True)):
        losses.append(_checked(_losses(logits, batch), sum(map(len, losses)), source))
        if against:
            kl += against.divergences(source, number, logits).tolist()
    return losses, tuple(kl) if against else None


def text_windows(
    tokenizer: "PreTrainedTokenizerBase",
    text: Text,
    window: int,
    max_windows: int | None,
    special_tokens: SpecialTokens,
) -> Tensor:
    """The text's windows without overlap, the first `max_windows` of them: (windows, window) ids, int64.

    Raises as `perplexity` does.
    """
    if window < 2:
        raise UsageError(f"--window {window} leaves no token to predict: give at least 2")
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"--max-windows {max_windows} leaves nothing to measure: give at least 1")
    check_special_tokens(special_tokens)
    start = beginning(tokenizer) if special_tokens == "window" else []
    size = window - len(start)
    if size < 1:
        raise UsageError(f"--window {window} has no room beside the special tokens, {len(start)}: give a longer one")
    ids = encode(tokenizer, [text.text], special_tokens == "text")[0]
    if len(ids) < size:
        raise SlimrankError(
            f"{text.source} holds {len(ids)} tokens, not one window of {window}: give a smaller --window or more text"
        )
    count = min(len(ids) // size, max_windows or len(ids))
    own = torch.tensor(ids[: count * size], dtype=torch.int64).view(count, size)
    return torch.cat([torch.tensor(start, dtype=torch.int64).expand(count, -1), own], 1)


def _losses(logits: Tensor, batch: Tensor) -> Tensor:
    """The summed negative log-likelihood of each window, (windows,) float64; NaN where a logit is not finite."""
    losses = next_token_losses(logits, batch).double().sum(1)
    return losses.where(logits.isfinite().flatten(1).all(1), math.nan).cpu()


def _checked(losses: Tensor, first: int, source: str) -> Tensor:
    bad = losses.isfinite().logical_not().nonzero()
    if len(bad):
        raise SlimrankError(
            f"The model's logits are not finite on window {first + int(bad[0]) + 1} of {source}:"
            " check its weights or load it in a wider dtype"
        )
    return losses


def _exp(nats: float) -> float:
    try:
        return math.exp(nats)
    except OverflowError:
        return math.inf
