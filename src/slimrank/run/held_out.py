"""What compression cost on the calibration text's own held-out windows: the first numbers that a user asks for."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from slimrank.calibrate.stream import Part, final_states
from slimrank.checkpoint.account import HeldOut
from slimrank.model.compressible import Compressible
from slimrank.numerics.losses import costs
from slimrank.refine.divergences import logits_of, mean_divergences
from slimrank.runtime.track import Track, no_track


@torch.no_grad()
def held_out_cost(model: Compressible, held_out: Tensor, track: Track = no_track) -> HeldOut | None:
    """Perplexity of the dense and the compressed model on windows (count, tokens), and their divergence.

    The blocks run one at a time, in the dtype of the computation. None where there are no held-out windows.
    """
    if not held_out.numel() or held_out.shape[1] < 2:
        return None
    decoder = model.decoder
    with decoder.weights.hold(None):
        with model.as_dense():
            dense = final_states(decoder, held_out, track, "judging")
        ours = final_states(decoder, held_out, track, "judging")
        following = [pad(ids[:, 1:], (0, 1), value=-100) for ids in dense.ids]

        def sums(batch: int, part: Part, target: Tensor) -> Sequence[float]:
            return costs(logits_of(ours, batch, part), target, following[batch][part])

        divergence, of_dense, of_ours = mean_divergences(model, dense, sums)
    predicted = held_out.shape[1] / (held_out.shape[1] - 1)  # the last token of a window predicts none
    return HeldOut(
        tokens=held_out.numel(),
        dense=math.exp(of_dense * predicted),
        compressed=math.exp(of_ours * predicted),
        divergence=max(divergence, 0.0),
    )
