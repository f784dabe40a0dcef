"""The logits of a model on batches of windows: of the whole model at once, or a block at a time."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slimrank.calibrate.stream import Stream, default_batch
from slimrank.model.decoder import Decoder
from slimrank.runtime.track import Track

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 4096
BATCH_LOGITS = 2**26
BLOCKWISE_LOGITS = 2**24  # of a model that is not in memory as a whole
COPIES = 6 * 4  # bytes of a logit in float32: the model's, the first one's, and what compares them


def batch_size(window: int, vocabulary: int, decoder: Decoder | None) -> int:
    """Windows at a time; decoder: where the model runs a block at a time."""
    if decoder is None:
        return max(1, min(BATCH_TOKENS // window, BATCH_LOGITS // (window * vocabulary)))
    return max(1, min(default_batch(decoder, window), BLOCKWISE_LOGITS // (window * vocabulary)))


def logits_bytes(window: int, vocabulary: int) -> int:
    """The memory that the logits of a model take that runs a block at a time."""
    return COPIES * max(BLOCKWISE_LOGITS, window * vocabulary)


def at_once(model: "PreTrainedModel", batches: Sequence[Tensor], track: Track, what: str) -> Iterator[Tensor]:
    """Each batch's logits (windows, tokens, vocabulary) from ids (windows, tokens)."""
    # where the inputs go: the first parameter that is not offloaded
    device = next((p.device for p in model.parameters() if p.device.type != "meta"), torch.device("cpu"))
    for ids in track(batches, what, len(batches)):
        yield model(input_ids=ids.to(device), use_cache=False).logits


def blockwise(decoder: Decoder, batches: Sequence[Tensor], track: Track, what: str) -> Iterator[Tensor]:
    """The same, with the hidden states of all batches kept between one block and the next."""
    stream = Stream(decoder, torch.cat(list(batches)), len(batches[0]))
    for _ in track(range(len(decoder)), what, len(decoder)):
        stream.skip(1)
    with decoder.weights.hold(None):
        for ids, hidden in zip(stream.ids, stream.hidden, strict=True):
            yield decoder.head(ids, hidden.to(decoder.device))
