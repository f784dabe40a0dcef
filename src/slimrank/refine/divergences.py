"""KL(dense || compressed) from the states behind the last block, some tokens at a time, since logits are many."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slimrank.calibrate.stream import Part, Stream, parts_at_once
from slimrank.losses import divergence


def logits_of(stream: Stream, batch: int, part: Part) -> Tensor:
    """Of a part of a batch of the stream, which is behind the last block."""
    decoder = stream.decoder
    return decoder.head(stream.ids[batch][part], stream.hidden[batch][part].to(decoder.device))


@torch.no_grad()
def dense_logits(dense: Stream, batch: int, part: Part) -> Tensor:
    """The same with the dense model's norms."""
    with dense.decoder.weights.dense_vectors():
        return logits_of(dense, batch, part)


def divergence_from(dense: Stream, batch: int, logits: Tensor, part: Part) -> Tensor:
    """KL(dense || logits) summed over a part of a batch."""
    return divergence(logits, dense_logits(dense, batch, part)) * dense.ids[batch][part].numel()


@torch.no_grad()
def mean_divergences(dense: Stream, compressed: Sequence[Callable[[int, Part], Tensor]]) -> list[float]:
    """KL(dense || compressed) in nats a token over all processes' windows, for several makers of a part's logits."""
    world, losses = dense.decoder.world, [0.0 for _ in compressed]
    for batch, ids in enumerate(dense.ids):
        for part in parts_at_once(dense.decoder, ids):
            target = dense_logits(dense, batch, part)
            for place, logits in enumerate(compressed):
                losses[place] += divergence(logits(batch, part), target).item() * ids[part].numel()
    tokens = world.total(sum(ids.numel() for ids in dense.ids))
    return [world.total(loss) / tokens for loss in losses]
