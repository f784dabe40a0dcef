"""Moments of a whole model at once, for tests of what they are."""

from typing import Any

from torch import Tensor

from slimrank.calibrate.collect import Linears, each_block
from slimrank.calibrate.gradients import each_gradient
from slimrank.calibrate.moments import Moments
from slimrank.model.decoder import Decoder


def collect(decoder: Decoder, ids: Tensor, linears: Linears, **options: Any) -> Moments:
    """Over the windows `ids` (windows, tokens)."""
    whole = Moments()
    for _, part in each_block(decoder, ids, linears, **options):
        whole.inputs, whole.blocks = {**whole.inputs, **part.inputs}, {**whole.blocks, **part.blocks}
        whole.leader |= part.leader
    return whole


def collect_gradients(decoder: Decoder, ids: Tensor, linears: Linears, moments: Moments, **options: Any) -> None:
    """Add those of the gradients."""
    for _, part in each_gradient(decoder, ids, linears, **options):
        moments.outputs = {**moments.outputs, **part.outputs}
