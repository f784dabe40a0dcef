"""KL(dense || compressed) from the hidden states behind the last block, a part at a time to limit the logits."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from slimrank.calibrate.stream import Part, Stream, parts_at_once
from slimrank.model.compressible import Compressible


def logits_of(stream: Stream, batch: int, part: Part) -> Tensor:
    """The logits of a part of a batch; the stream is behind the last block."""
    decoder = stream.decoder
    return decoder.head(stream.ids[batch][part], stream.hidden[batch][part].to(decoder.device))


@torch.no_grad()
def dense_logits(model: Compressible, dense: Stream, batch: int, part: Part) -> Tensor:
    """The same with the dense model's norms and biases, embedding and head."""
    with model.as_dense(model.outside):
        return logits_of(dense, batch, part)


@torch.no_grad()
def mean_divergences(
    model: Compressible, dense: Stream, summed: Callable[[int, Part, Tensor], Sequence[float]]
) -> list[float]:
    """Means of KL(dense || compressed), in nats per token over all processes' windows, one for each sum of `summed`.

    summed: called with a batch's index, a part of it and the dense logits there (windows, tokens, vocabulary); returns
    sums of KL over the part's tokens.
    """
    world, sums = dense.decoder.world, list[list[float]]()
    for batch, ids in enumerate(dense.ids):
        for part in parts_at_once(dense.decoder, ids):
            sums.append(list(summed(batch, part, dense_logits(model, dense, batch, part))))
    tokens = world.total(sum(ids.numel() for ids in dense.ids))
    return [world.total(sum(each)) / tokens for each in zip(*sums, strict=True)]
