"""The gradient pass: from the head back to the entry, a block at a time."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Literal, cast

import torch
from torch import Tensor, nn

from slimrank.calibrate.collect import Linears, merged, require_finite
from slimrank.calibrate.moments import Moments, PackedOutput
from slimrank.calibrate.products import product
from slimrank.calibrate.stream import Stream, default_batch, parts_at_once
from slimrank.linear import shape_of
from slimrank.model import Decoder, attached
from slimrank.progress import Track, no_track

Labels = Literal["text", "sampled"]
NONE = -100  # for the token after the last


def collect_gradients(
    decoder: Decoder,
    ids: Tensor,
    linears: Linears,
    moments: Moments,
    *,
    labels: Labels = "text",
    seed: int = 0,
    track: Track = no_track,
) -> None:
    """Add OutputMoments to `moments` over the windows `ids` (windows, tokens).

    The loss is the sum over tokens of the next token's negative log-likelihood in nats, the next token taken from the
    text or sampled from the model (whose Fisher information is then true rather than empirical).
    """
    found = merged(one for _, one in each_gradient(decoder, ids, linears, labels=labels, seed=seed, track=track))
    moments.outputs = {**moments.outputs, **found.outputs}


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
) -> Iterator[tuple[int, Moments]]:
    """Block by block from the last, its index and its OutputMoments, but for those that are `done`.

    of_weights: also what the gradients of the weights themselves give, fisher_rows and gradient_norm. One block's
    graph is held at a time, and the hidden states before every block or, where these do not fit, before some of them,
    from which the others follow again. Of several processes each reads its share of the windows.
    """
    missing = [index for index in range(len(linears)) if index not in done]
    if not missing:
        return
    mine = decoder.world.part(len(ids))
    states = States(decoder, ids[mine])
    draws = (window_generator(decoder.device, seed, window) for window in range(mine.start, mine.stop))
    with decoder.weights.hold(None):
        gradients = [
            _head_gradient(decoder, chunk, hidden, labels, list(islice(draws, len(chunk))))
            for chunk, hidden in zip(states.ids, states.last, strict=True)
        ]
    last = len(decoder) - 1
    for index in track(range(last, missing[0] - 1, -1), "gradients", last + 1 - missing[0]):
        outputs, totals = dict[str, PackedOutput](), dict[str, Tensor]()
        watched = {} if index in done else linears[index]
        for batch, before in enumerate(states.before(index)):
            before = before.to(decoder.device).detach().requires_grad_()
            with torch.enable_grad(), watch_gradients(watched, outputs, totals if of_weights else None):
                after = decoder.run(index, before, states.calls[batch][index])
                (gradient,) = torch.autograd.grad(after, before, gradients[batch].to(after.device))
                gradients[batch] = states.home.put(gradient)
        for gradient in gradients:
            require_finite(gradient, f"the gradient at the input of {decoder.prefix}.{index}")
        if index not in done:
            add_up(decoder, outputs, totals if of_weights else None, linears[index])
            for name, one in outputs.items():
                one.gradient_norm = totals[name].norm().item() if name in totals else 0.0
            yield index, Moments(outputs=outputs)


class States:
    """The hidden states before every block, on the way back: held for all blocks, or every k-th and followed again."""

    def __init__(self, decoder: Decoder, ids: Tensor) -> None:
        self._decoder, depth = decoder, len(decoder)
        batch = default_batch(decoder, ids.shape[1])
        first = Stream(decoder, ids[:batch], batch)
        size = first.nbytes * len(ids) // len(ids[:batch])
        self._every = stride(depth, decoder.states_room.host // max(size, 1))
        stream = Stream(decoder, ids, batch, copies=-(-depth // self._every) + self._every)
        self._held: dict[int, list[Tensor]] = {}
        while stream.depth < depth:
            if stream.depth % self._every == 0:
                self._held[stream.depth] = list(stream.hidden)
            stream.skip(1)
        self.ids, self.calls, self.last, self.home = stream.ids, stream.calls, stream.hidden, stream.home

    @torch.no_grad()
    def before(self, index: int) -> list[Tensor]:
        """By batch, the hidden states before block `index`; asked for from the last block to the first."""
        if index not in self._held:
            for depth in range(index - index % self._every, index):
                self._held[depth + 1] = [
                    self.home.put(self._decoder.run(depth, hidden, self.calls[batch][depth]))
                    for batch, hidden in enumerate(self._held[depth])
                ]
        return self._held.pop(index)


def stride(depth: int, sets: int) -> int:
    """The least k with depth / k + k <= sets, so that so many sets of states suffice; 1 where there is none."""
    fitting = (k for k in range(1, depth + 1) if -(-depth // k) + k <= sets)
    return next(fitting, 1)


def add_up(
    decoder: Decoder, outputs: dict[str, PackedOutput], totals: dict[str, Tensor] | None, linears: dict[str, nn.Module]
) -> None:
    """Make the sums over this process's windows those over all; some linears only others may have reached."""
    for one in outputs.values():
        one.fourth = float(one.fourth)
    for name in decoder.world.gathered(dict.fromkeys(outputs)).keys() - outputs.keys():
        shape = shape_of(linears[name])
        outputs[name] = PackedOutput.empty(shape[0], decoder.device)
        if totals is not None:
            totals[name] = torch.zeros(shape, device=decoder.device)
    for name, one in sorted(outputs.items()):
        one.add_up(decoder.world)
        if totals is not None:
            decoder.world.add_up(totals[name])


def window_generator(device: torch.device, seed: int, window: int) -> torch.Generator:
    """The generator of a window's labels, whichever process and batch it is in."""
    return torch.Generator(device).manual_seed(seed * 2**24 + window)


def _head_gradient(
    decoder: Decoder, ids: Tensor, hidden: Tensor, labels: Labels, draws: list[torch.Generator]
) -> Tensor:
    """dL/d hidden, some tokens at a time, since the logits are many; draws: a generator a window."""
    following = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=NONE)
    gradient = torch.empty_like(hidden, device=decoder.device)
    for part in parts_at_once(decoder, ids):
        states = hidden[part].to(decoder.device).detach().requires_grad_()
        with torch.enable_grad():
            logits, targets = decoder.head(ids[part], states).float(), following[part]
            if labels == "sampled":
                windows = zip(logits.detach().softmax(-1), draws[part[0]], strict=True)
                drawn = torch.stack([torch.multinomial(p, 1, generator=draw).squeeze(1) for p, draw in windows])
                targets = torch.where(targets == NONE, NONE, drawn)
            loss = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=NONE
            )
            gradient[part] = torch.autograd.grad(loss, states)[0]
    return gradient


@contextmanager
def watch_gradients(
    linears: dict[str, nn.Module], outputs: dict[str, PackedOutput], totals: dict[str, Tensor] | None
) -> Iterator[None]:
    """Add the gradient at every linear's output to `outputs`, and dL/dW to `totals` where they are asked for."""

    def hook(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()
            output.register_hook(lambda gradient: add_gradient(outputs, totals, name, x, gradient))

        return watch

    with attached(module.register_forward_hook(hook(name)) for name, module in linears.items()):
        yield


def add_gradient(
    outputs: dict[str, PackedOutput], totals: dict[str, Tensor] | None, name: str, x: Tensor, gradient: Tensor
) -> None:
    """Add one batch: x (..., n) at a linear's input and dL/dy (..., m) at its output, the first axis being windows."""
    g = gradient.detach().reshape(len(gradient), -1, gradient.shape[-1])
    flat = g.flatten(0, 1)
    if name not in outputs:
        outputs[name] = PackedOutput.empty(flat.shape[1], flat.device)
    moments = outputs[name]
    moments.sums.add(flat)
    moments.fourth = cast(float, moments.fourth + flat.float().square().sum(1).double().square().sum())
    moments.tokens += len(flat)
    moments.windows += len(g)
    if totals is None:
        return
    for gradients, inputs in zip(g, x.reshape(len(x), -1, x.shape[-1]), strict=True):
        of_window = product(gradients, inputs)
        moments.fisher_rows += of_window.double().square().sum(1)
        totals[name] = totals[name].add_(of_window) if name in totals else of_window
