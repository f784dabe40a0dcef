"""What embedding and head of few bits are expected to lose."""

import torch
from torch import Tensor

from slimrank.calibrate.ends import EndMoments
from slimrank.forms.linear import weight_of
from slimrank.model.compressible import Compressible
from slimrank.refine.ends import end_grid, nearest


@torch.no_grad()
def end_loss(model: Compressible, moments: EndMoments, bits: int) -> float:
    """The expected loss, in nats a token, of embedding and head rounded to so many bits; 16 leaves them as they are."""
    if bits == 16:
        return 0.0
    table, tied, total = model.decoder.model.get_input_embeddings(), len(model.ends) < 2, 0.0
    with model.decoder.weights.hold(None):
        for end in model.ends.values():
            weight: Tensor = end.weight if end is table else weight_of(end)  # type: ignore[assignment]
            squares = (nearest(weight, end_grid(bits)).weight - weight.double()).square_()
            total += moments.price(squares, entry=end is table, head=tied or end is not table)
    return total
