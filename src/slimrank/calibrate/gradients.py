"""The gradient pass of calibration: from the head back to the first block, a block at a time."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from types import MappingProxyType

import torch
from torch import Tensor, nn

from slimrank.calibrate.backward import Loss, States, head_gradient, step_back
from slimrank.calibrate.collect import Linears
from slimrank.calibrate.ends import EndMoments
from slimrank.calibrate.experts import complete_outputs, experts_of, windows_of
from slimrank.calibrate.moments import Moments, OutputMoments
from slimrank.calibrate.needs import Labels
from slimrank.calibrate.stream import Part
from slimrank.forms.experts import Unfolded, watching
from slimrank.forms.experts.fused import Rows
from slimrank.forms.linear import shape_of
from slimrank.model.decoder import Decoder
from slimrank.model.modules import attached
from slimrank.numerics.gram_sum import product
from slimrank.runtime.track import Track, no_track

NONE = -100  # the label of a window's last token, which cross_entropy ignores


def each_gradient(
    decoder: Decoder,
    ids: Tensor,
    linears: Linears,
    *,
    labels: Labels = "text",
    seed: int = 0,
    of_weights: bool = True,
    done: Collection[int] = (),
    track: Track = no_track,
    ends: Callable[[EndMoments], None] | None = None,
) -> Iterator[tuple[int, Moments]]:
    """Yield (index, Moments with `outputs`) of every block not in `done`, from the last to the first.

    The loss is the negative log-likelihood of the next token in nats, summed over tokens. labels: the next token is the
    text's (empirical Fisher information) or sampled from the model (true Fisher information).

    of_weights: also compute fisher_rows and gradient_norm from the gradients of the weights. One block's graph is held
    at a time, and as many hidden states as fit (see States). Each process reads its share of the windows. ends: called
    with the moments of embedding and head before the first block's are yielded.
    """
    missing = [index for index in range(len(linears)) if index not in done]
    if not missing:
        return
    mine = decoder.world.part(len(ids))
    states = States(decoder, ids[mine], track)
    seen = None if ends is None else EndMoments.empty(decoder, states.ids)
    last = len(decoder) - 1
    draws = (window_generator(decoder.device, seed, window) for window in range(mine.start, mine.stop))
    with decoder.weights.hold(None), nullcontext() if seen is None else seen.watching(decoder):
        losses = (token_losses(chunk, labels, list(islice(draws, len(chunk)))) for chunk in states.ids)
        gradients = [
            head_gradient(decoder, chunk, hidden, loss if seen is None else seen.spread_of(loss))
            for chunk, hidden, loss in zip(states.ids, states.last, losses, strict=True)
        ]
    for index in track(range(last, missing[0] - 1, -1), "gradients", last + 1 - missing[0]):
        outputs, totals = dict[str, OutputMoments](), dict[str, Tensor]()
        watched, block = {} if index in done else linears[index], decoder.blocks[index]
        experts = experts_of(decoder, index)
        with watch_gradients(block, watched, outputs, totals if of_weights else None, experts):
            before = step_back(decoder, states, gradients, index)
        if seen is not None and ends is not None and index == 0:
            seen.add_gradients(decoder, states.ids, before, gradients)
            ends(seen)
        if index not in done:
            add_up(decoder, outputs, totals if of_weights else None, linears[index])
            for name, output in outputs.items():
                output.gradient_norm = totals[name].norm().item() if name in totals else 0.0
            complete_outputs(outputs, experts, linears[index])
            yield index, Moments(outputs=outputs)


def add_up(
    decoder: Decoder, outputs: dict[str, OutputMoments], totals: dict[str, Tensor] | None, linears: dict[str, nn.Module]
) -> None:
    """Add up the sums over all processes, in place, with zeros for linears not reached in this one."""
    for name in decoder.world.gathered(dict.fromkeys(outputs)).keys() - outputs.keys():
        shape = shape_of(linears[name])
        outputs[name] = OutputMoments.empty(shape[0], decoder.device)
        if totals is not None:
            totals[name] = torch.zeros(shape, device=decoder.device)
    for name, output in sorted(outputs.items()):
        output.add_up(decoder.world)
        if totals is not None:
            decoder.world.add_up(totals[name])


def window_generator(device: torch.device, seed: int, window: int) -> torch.Generator:
    """The generator of a window's sampled labels, independent of its process and batch."""
    return torch.Generator(device).manual_seed((seed * 2**24 + window) % 2**63)


def token_losses(ids: Tensor, labels: Labels, draws: list[torch.Generator]) -> Loss:
    """The loss of each_gradient for a batch of windows ids (batch, tokens); draws: one generator for each window."""
    following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=NONE)

    def loss(logits: Tensor, part: Part) -> Tensor:
        targets = following[part]
        if labels == "sampled":
            places = torch.stack(
                [torch.rand(logits.shape[1], generator=draw, device=draw.device) for draw in draws[part[0]]]
            )
            targets = torch.where(targets == NONE, NONE, drawn(logits.detach(), places))
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=NONE
        )

    return loss


def drawn(logits: Tensor, places: Tensor) -> Tensor:
    """Ids (...,) sampled from logits (..., vocabulary) by inverting their distribution at `places` (...,) in [0, 1).

    It takes one random number for each token; torch.multinomial takes one for each id of the vocabulary.
    """
    cumulated = logits.softmax(-1).cumsum(-1)
    ids = torch.searchsorted(cumulated, (places.to(cumulated) * cumulated[..., -1]).unsqueeze(-1), right=True)
    return ids.squeeze(-1).clamp_max(logits.shape[-1] - 1)


@contextmanager
def watch_gradients(
    block: nn.Module,
    linears: dict[str, nn.Module],
    outputs: dict[str, OutputMoments],
    totals: dict[str, Tensor] | None,
    experts: Mapping[str, Unfolded] = MappingProxyType({}),
) -> Iterator[None]:
    """Sum the gradient at every linear's output into `outputs`, and dL/dW into `totals` unless that is None."""
    batch, rows = torch.Size(), dict[str, Tensor]()
    names = {module: name for name, module in experts.items()}

    def routed(module: Unfolded, hidden: Tensor, own: Rows) -> Rows:
        rows.update({f"{names[module]}.{number}": tokens for number, tokens in own.items()})
        return own

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal batch
        batch = args[0].shape[:2]

    def hook(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x, tokens = args[0].detach(), rows.get(name.rpartition(".")[0])

            def split(x: Tensor) -> Sequence[Tensor]:
                return by_window(x, batch) if tokens is None else x.split(windows_of(tokens, batch))

            output.register_hook(lambda g: add_gradient(outputs, totals, name, split(x), split(g.detach())))

        return watch

    hooks = [module.register_forward_hook(hook(name)) for name, module in linears.items()]
    with attached([block.register_forward_pre_hook(note), *hooks]), watching(list(experts.values()), routed):
        yield


def by_window(x: Tensor, batch: torch.Size) -> Sequence[Tensor]:
    """The tokens (tokens, n) of each window in x, which the block may have flattened; batch: (windows, tokens)."""
    x = x.unflatten(0, batch) if x.ndim == 2 and len(x) == batch.numel() else x
    return list(x.reshape(len(x), -1, x.shape[-1]))


def add_gradient(
    outputs: dict[str, OutputMoments],
    totals: dict[str, Tensor] | None,
    name: str,
    x: Sequence[Tensor],
    gradient: Sequence[Tensor],
) -> None:
    """Add one batch: by window, x (tokens, n) at a linear's input and dL/dy (tokens, m) at its output."""
    flat = torch.cat(list(gradient))
    if name not in outputs:
        outputs[name] = OutputMoments.empty(flat.shape[1], flat.device)
    moments = outputs[name]
    moments.sums.add(flat)
    moments.fourth += flat.float().square().sum(1).double().square().sum()
    moments.tokens += len(flat)
    moments.windows += len(gradient)
    if totals is None:
        return
    for gradients, inputs in zip(gradient, x, strict=True):
        of_window = product(gradients, inputs)
        moments.fisher_rows += of_window.double().square().sum(1)
        totals[name] = totals[name].add_(of_window) if name in totals else of_window
