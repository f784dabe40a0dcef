"""Collect Moments: windows go through the decoder a block at a time, while hooks watch every linear's input."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.calibrate.moments import BlockMoments, InputMoments, Moments
from slimrank.calibrate.stream import Stream, default_batch
from slimrank.errors import SlimrankError
from slimrank.model import Decoder
from slimrank.progress import Track, no_track


def collect(decoder: Decoder, ids: Tensor, linears: list[dict[str, nn.Module]], *, track: Track = no_track) -> Moments:
    """Input and block moments over the windows `ids` (windows, tokens); `linears` per block, from Decoder.linears.

    Raises:
        SlimrankError: naming the linear or block that a non-finite activation reached.
    """
    moments = Moments()
    stream = Stream(decoder, ids, default_batch(ids.shape[1]))
    for index, names in enumerate(track(linears, "calibrating", len(linears))):
        width = stream.hidden[0].shape[-1]
        block = BlockMoments(torch.zeros(width, width, dtype=torch.float64, device=decoder.device))
        with watch_inputs(names, moments):
            for before, after in stream.advance():
                require_finite(after, f"the output of {decoder.prefix}.{index}")
                block.add(before, after)
        moments.blocks.append(block)
    return moments


@contextmanager
def watch_inputs(linears: dict[str, nn.Module], moments: Moments) -> Iterator[None]:
    """Add every input that reaches the linears to `moments`, once where several linears read the same tensor."""
    seen: dict[int, tuple[Tensor, str]] = {}

    def hook(name: str) -> Any:
        def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if any(name == leader for _, leader in seen.values()):
                seen.clear()  # the next batch has begun
            if id(x) not in seen:
                seen[id(x)] = (x, name)  # holding x keeps its id from being given to another tensor
                require_finite(x, f"the input of {name}")
                moments.inputs.setdefault(name, InputMoments.empty(x.shape[-1], x.device)).add(x)
            leader = seen[id(x)][1]
            if moments.leader.setdefault(name, leader) != leader:
                raise SlimrankError(
                    f"{name} shares its input in some batches and not in others: leave it out by a filter."
                )

        return watch

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_finite(x: Tensor, what: str) -> None:
    """Raise a SlimrankError if x holds NaN or Inf."""
    if not torch.isfinite(x).all():
        raise SlimrankError(f"Calibration met NaN or Inf in {what}: try --dtype float32 or check the weights.")
