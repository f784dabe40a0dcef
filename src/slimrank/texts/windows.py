"""Windows of tokens at random places of a text, as the literature draws them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from slimrank.errors import SlimrankError, UsageError
from slimrank.runtime.digests import sha256_of_text
from slimrank.texts.given import TokenRows
from slimrank.texts.mix import apportioned, interleaved, origins
from slimrank.texts.parts import Characters, Encoder, Part, Rows, require
from slimrank.texts.texts import Text
from slimrank.texts.tokens import encode, fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


def _no_more(count: int, seed: int) -> Tensor:
    raise SlimrankError("These windows come from no text, so no more can be drawn: use sample_windows.")


@dataclass(frozen=True)
class Windows:
    """Token ids, int64: `calibration` (samples, window), `held_out` (held-out windows, window), and how they came.

    `more(count, seed)` draws further windows from where the calibration ones came from. origins: (samples,) which of
    several texts each of these is of, None where there is one.
    """

    calibration: Tensor
    held_out: Tensor
    record: dict[str, Any]
    more: Callable[[int, int], Tensor] = _no_more
    origins: Tensor | None = None

    def by_text(self) -> list[Tensor]:
        """The calibration windows of each text."""
        if self.origins is None:
            return [self.calibration]
        return [self.calibration[self.origins == index] for index in self.origins.unique()]


def sample_windows(
    tokenizer: "PreTrainedTokenizerBase",
    text: Text | TokenRows | Sequence[Text | TokenRows],
    *,
    samples: int,
    window: int,
    seed: int,
    held_out: int | None = None,
    special_tokens: bool = False,
    shares: Sequence[float] = (),
) -> Windows:
    """Draw exactly `samples` windows from the first nine tenths of the text and `held_out` from the last tenth.

    Each window is the first `window` tokens of the text from a random character on. A window out of the middle of a
    text has no BOS before it, so none is put there unless `special_tokens` asks for the tokenizer's default ones.
    `held_out` defaults to max(8, samples // 8), at most what the tail yields without overlap. Several texts give
    windows in `shares`, by default equal ones, in the order of `interleaved`. Token ids are windows as they are, of
    which the last tenth is held out. The same arguments give the same windows.

    Raises:
        SlimrankError: when a part of a text is too short.
        UsageError: for counts below 1 or too few for the shares, or special tokens before token ids.
    """
    _check_counts(samples, window, held_out)
    texts = [text] if isinstance(text, Text | TokenRows) else list(text)
    if special_tokens and any(isinstance(one, TokenRows) for one in texts):
        raise UsageError("Token ids are taken as they are: put the special tokens into them, and leave out the option.")
    shares = shares or [1 / len(texts)] * len(texts)
    encoder = partial(encode, tokenizer, special_tokens=special_tokens)
    heads, tails = zip(*(_parts(one, encoder, alone=len(texts) == 1) for one in texts), strict=True)
    counts = apportioned(samples, shares)
    for head, count in zip(heads, counts, strict=True):
        if not count:
            raise UsageError(f"--samples {samples} leaves no window for {head.name}: give more, or it a larger share.")
        require(head.yields(window, count), count, window, head)
    count = _held_out(tails, shares, window, held_out, max(8, samples // 8))
    record = {
        **_sources(texts, shares),
        "tokenizer": fingerprint(tokenizer),
        "samples": samples,
        "window": window,
        "seed": seed,
        "held_out": count,
        "special_tokens": special_tokens,
    }
    drawn = partial(_drawn, shares=shares, window=window)

    def more(number: int, other_seed: int) -> Tensor:
        return drawn(heads, count=number, seed=other_seed)

    of = origins(counts, seed) if len(texts) > 1 else None
    return Windows(more(samples, seed), drawn(tails, count=count, seed=seed), record, more, of)


def context_length(config: "PretrainedConfig") -> int | None:
    """How many positions the model was built for, None where its config does not say."""
    config = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        length = getattr(config, name, None)
        if isinstance(length, int) and length > 0:
            return length
    return None


def check_window(window: int, config: "PretrainedConfig") -> None:
    """Raise UsageError when the window is beyond the model's context."""
    context = context_length(config)
    if context is not None and window > context:
        raise UsageError(f"--window {window} is beyond the model's context of {context} tokens: give at most {context}")


def _check_counts(samples: int, window: int, held_out: int | None) -> None:
    for option, value, least in (("--samples", samples, 1), ("--window", window, 1), ("held_out", held_out, 0)):
        if value is not None and value < least:
            raise UsageError(f"{option} {value} is too small: give at least {least}")


def _parts(text: Text | TokenRows, encoder: Encoder, alone: bool) -> tuple[Part, Part]:
    """What calibration windows, and what held-out windows, are drawn from: nine tenths of the text and the last one."""
    whole = text.text if isinstance(text, Text) else text.ids
    boundary = len(whole) * 9 // 10
    names = (f"the first nine tenths of {text.source}", f"the last tenth of {text.source} (kept for held-out windows)")
    options = ("--samples", "held_out") if alone else ("", "")
    head, tail = (
        Characters(encoder, part, name, option) if isinstance(part, str) else Rows(part, name, option)
        for part, name, option in zip((whole[:boundary], whole[boundary:]), names, options, strict=True)
    )
    return head, tail


def _sources(texts: Sequence[Text | TokenRows], shares: Sequence[float]) -> dict[str, Any]:
    """What a record says of the texts: one as it is, several in a word, and each under `texts`."""
    if len(texts) == 1:
        return {"source": texts[0].source, "sha256": texts[0].sha256}
    found = [
        {"source": text.source, "sha256": text.sha256, "share": share}
        for text, share in zip(texts, shares, strict=True)
    ]
    return {
        "source": ", ".join(f"{one['source']} ({one['share']:.4g})" for one in found),
        "sha256": sha256_of_text("".join(text.sha256 for text in texts)),
        "texts": found,
    }


def _held_out(tails: Sequence[Part], shares: Sequence[float], window: int, asked: int | None, usual: int) -> int:
    """How many held-out windows there are: those asked for, or as many of the usual ones as all tails yield."""
    count = usual if asked is None else asked
    wanted = apportioned(count, shares)
    available = [tail.yields(window, own) for tail, own in zip(tails, wanted, strict=True)]
    while asked is None and count > len(tails) and any(map(int.__gt__, wanted, available)):
        count -= 1
        wanted = apportioned(count, shares)
    for tail, own, there in zip(tails, wanted, available, strict=True):
        require(there, own, window, tail)
    return count


def _drawn(parts: Sequence[Part], *, shares: Sequence[float], window: int, count: int, seed: int) -> Tensor:
    """(count, window) ids from all parts in these shares; every part after the first has a seed of its own."""
    counts = apportioned(count, shares)
    seeds: list[int | str] = [seed, *(f"{seed}/{index}" for index in range(1, len(parts)))]
    rows = [part.draw(own, window, one) for part, own, one in zip(parts, counts, seeds, strict=True)]
    return interleaved(rows, seed)
