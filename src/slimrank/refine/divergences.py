"""KL(dense || compressed) from the states behind the last block, some tokens at a time, since logits are many."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slimrank.calibrate.stream import Part, Stream, parts_at_once


def logits_of(stream: Stream, batch: int, part: Part) -> Tensor:
    """Of a part of a batch of the stream, which is behind the last block."""
    decoder = stream.decoder
    return decoder.head(stream.ids[batch][part], stream.hidden[batch][part].to(decoder.device))


@torch.no_grad()
def dense_logits(dense: Stream, batch: int, part: Part) -> Tensor:
    """The same with the dense model's norms."""
    with dense.decoder.weights.dense_vectors():
        return logits_of(dense, batch, part)


@torch.no_grad()
def mean_divergences(dense: Stream, summed: Callable[[int, Part, Tensor], Sequence[float]]) -> list[float]:
    """KL(dense || compressed) in nats a token over all processes' windows, for each that `summed` gives the sums of.

    summed: of a batch, its part and the dense model's logits there (windows, tokens, vocabulary), sums over tokens.
    """
    world, sums = dense.decoder.world, list[list[float]]()
    for batch, ids in enumerate(dense.ids):
        for part in parts_at_once(dense.decoder, ids):
            sums.append(list(summed(batch, part, dense_logits(dense, batch, part))))
    tokens = world.total(sum(ids.numel() for ids in dense.ids))
    return [world.total(sum(each)) / tokens for each in zip(*sums, strict=True)]
