"""The forward pass of calibration: a block at a time, with hooks that sum every linear's input into Moments."""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from slimrank.calibrate.experts import add_up_counts, complete_inputs, counted, experts_of
from slimrank.calibrate.moments import BlockMoments, InputMoments, Moments
from slimrank.calibrate.stream import Stream, default_batch
from slimrank.errors import SlimrankError
from slimrank.forms.linear import shape_of
from slimrank.model.decoder import Decoder
from slimrank.model.modules import attached
from slimrank.runtime.track import Track, no_track

Linears = list[dict[str, nn.Module]]


def each_block(
    decoder: Decoder,
    ids: Tensor,
    linears: Linears,
    *,
    done: Collection[int] = (),
    blocks: bool = False,
    pooled: bool = False,
    every: bool = False,
    track: Track = no_track,
) -> Iterator[tuple[int, Moments]]:
    """Yield (index, moments) of every block not in `done`; blocks: also the moments of its output.

    pooled: experts' moments are completed from their layer's; every: all tokens are sent through all experts (see
    calibrate.experts). Each process reads its share of the windows; the moments are those of all windows.
    """
    missing = [index for index in range(len(linears)) if index not in done]
    if not missing:
        return
    stream = Stream(decoder, decoder.world.share(ids), default_batch(decoder, ids.shape[1]))
    for index in track(range(missing[-1] + 1), "calibrating", missing[-1] + 1):
        if index in done:
            stream.skip(1)
        else:
            yield index, _of_block(stream, linears[index], blocks, pooled, every)


def _of_block(stream: Stream, linears: dict[str, nn.Module], with_output: bool, pooled: bool, every: bool) -> Moments:
    moments, index = Moments(), stream.depth
    block: BlockMoments | None = None
    experts = experts_of(stream.decoder, index)
    with watch_inputs(linears, moments) as inputs, counted(experts, every) as routed:
        for before, after in stream.advance():
            if with_output:
                block = block or BlockMoments.empty(after.shape[-1], after.device)
                block.add(before, after)
    if block is not None:
        block.add_up(stream.decoder.world)
        moments.blocks = {index: block}
    inputs = add_up(stream.decoder, moments, inputs, linears)
    add_up_counts(stream.decoder, routed)
    for name, of_input in inputs.items():
        require_finite(of_input.absolute, f"the input of {name}")
        require_finite(of_input.sums.packed, f"the squared input of {name}")
    for hidden in stream.hidden:
        require_finite(hidden, f"the output of {stream.decoder.prefix}.{index}")
    if pooled:
        complete_inputs(moments, experts, routed, linears)
    return moments


def add_up(
    decoder: Decoder, moments: Moments, inputs: dict[str, InputMoments], linears: Mapping[str, nn.Module]
) -> dict[str, InputMoments]:
    """Add up the inputs' moments over all processes, in place, with empty ones for linears not reached in this one."""
    leaders = decoder.world.gathered(moments.leader)
    for name, leader in moments.leader.items():
        if leaders[name] != leader:
            raise _shared_at_times(name)
    missing = [name for name in dict.fromkeys(leaders.values()) if name not in inputs]
    inputs |= {name: InputMoments.empty(shape_of(linears[name])[1], decoder.device) for name in missing}
    moments.leader, moments.inputs = {**moments.leader, **leaders}, inputs
    for _, of_input in sorted(inputs.items()):
        of_input.add_up(decoder.world)
    return inputs


def _shared_at_times(name: str) -> SlimrankError:
    return SlimrankError(f"{name} shares its input in some batches and not in others: leave it out by a filter.")


@contextmanager
def watch_inputs(linears: Mapping[str, nn.Module], moments: Moments) -> Iterator[dict[str, InputMoments]]:
    """Sum every input of the linears into `moments`, once where several linears read the same tensor."""
    seen: dict[int, tuple[Tensor, str]] = {}
    inputs: dict[str, InputMoments] = {}
    moments.inputs = inputs

    def hook(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Any, ...]) -> None:
            x = args[0]
            if any(name == leader for _, leader in seen.values()):
                seen.clear()  # a new batch
            if id(x) not in seen:
                seen[id(x)] = (x, name)  # held so that its id is not reused
                if name not in inputs:
                    inputs[name] = InputMoments.empty(x.shape[-1], x.device)
                inputs[name].add(x)
            leader = seen[id(x)][1]
            if moments.leader.setdefault(name, leader) != leader:
                raise _shared_at_times(name)

        return watch

    with attached(module.register_forward_pre_hook(hook(name)) for name, module in linears.items()):
        yield inputs


def require_finite(x: Tensor, what: str) -> None:
    """Raise a SlimrankError that names `what` if x holds NaN or Inf."""
    if not x.isfinite().all():
        raise SlimrankError(f"Calibration found NaN or Inf in {what}: try --dtype float32 or check the weights.")
