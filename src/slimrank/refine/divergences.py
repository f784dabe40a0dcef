"""KL(dense || compressed) from the states behind the last block, some tokens at a time, since logits are many."""

import torch
from torch import Tensor

from slimrank.calibrate.stream import Part, Stream, parts_at_once
from slimrank.model import Decoder
from slimrank.refine.training import divergence
from slimrank.session import Session


def divergence_from(decoder: Decoder, ids: Tensor, dense: Tensor, logits: Tensor, part: Part) -> Tensor:
    """KL(dense || logits) summed over a part of the windows ids; dense: the dense model's last hidden states."""
    return divergence(logits, dense_logits(decoder, ids, dense, part)) * ids[part].numel()


@torch.no_grad()
def dense_logits(decoder: Decoder, ids: Tensor, dense: Tensor, part: Part) -> Tensor:
    """The dense model's, of a part of the windows ids, from its last hidden states."""
    with decoder.weights.dense_vectors():
        return decoder.head(ids[part], dense[part].to(decoder.device))


@torch.no_grad()
def mean_divergences(session: Session, ours: list[Stream], dense: Stream) -> list[float]:
    """KL(dense || ours) of each, in nats a token over all processes' windows."""
    decoder, losses = session.decoder, [0.0 for _ in ours]
    for batch, (ids, theirs) in enumerate(zip(dense.ids, dense.hidden, strict=True)):
        for part in parts_at_once(decoder, ids):
            target = dense_logits(decoder, ids, theirs, part)
            for place, stream in enumerate(ours):
                logits = decoder.head(ids[part], stream.hidden[batch][part].to(decoder.device))
                losses[place] += divergence(logits, target).item() * ids[part].numel()
    tokens = session.world.total(sum(ids.numel() for ids in dense.ids))
    return [session.world.total(loss) / tokens for loss in losses]
