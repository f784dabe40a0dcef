"""The gradient pass: from the head back to the entry, a block at a time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from slimrank.calibrate.collect import require_finite
from slimrank.calibrate.moments import Moments, OutputMoments
from slimrank.calibrate.stream import Stream, default_batch
from slimrank.model import Decoder
from slimrank.progress import Track, no_track

Labels = Literal["text", "sampled"]


def collect_gradients(
    decoder: Decoder,
    ids: Tensor,
    linears: list[dict[str, nn.Module]],
    moments: Moments,
    *,
    labels: Labels = "text",
    seed: int = 0,
    track: Track = no_track,
) -> None:
    """Add OutputMoments to `moments` over the windows `ids` (windows, tokens).

    The loss is the sum over tokens of the next token's negative log-likelihood in nats, the next token taken from the
    text or sampled from the model (whose Fisher information is then true rather than empirical). Only one block's
    graph is held at a time, and every block's input hidden states.
    """
    stream = Stream(decoder, ids, default_batch(ids.shape[1]))
    entries: list[list[Tensor]] = []
    while stream.depth < len(decoder):
        entries.append(list(stream.hidden))
        for _ in stream.advance():
            pass
    generator = torch.Generator(decoder.device).manual_seed(seed)
    gradients = [
        _head_gradient(decoder, chunk, hidden, labels, generator)
        for chunk, hidden in zip(stream.ids, stream.hidden, strict=True)
    ]
    for index in track(reversed(range(len(decoder))), "gradients", len(decoder)):
        totals: dict[str, Tensor] = {}
        for batch, before in enumerate(entries.pop()):
            before = before.requires_grad_()
            with torch.enable_grad(), watch_gradients(linears[index], moments, totals):
                after = decoder.run(index, before, stream.calls[batch][index])
                (gradients[batch],) = torch.autograd.grad(after, before, gradients[batch])
            require_finite(gradients[batch], f"the gradient at the input of {decoder.prefix}.{index}")
        for name, total in totals.items():
            moments.outputs[name].gradient_norm = total.norm().item()


def _head_gradient(decoder: Decoder, ids: Tensor, hidden: Tensor, labels: Labels, generator: torch.Generator) -> Tensor:
    hidden = hidden.detach().requires_grad_()
    with torch.enable_grad():
        logits = decoder.head(ids, hidden)[:, :-1].float().flatten(0, 1)
        targets = ids[:, 1:].flatten()
        if labels == "sampled":
            targets = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator).squeeze(1)
        loss = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
        return torch.autograd.grad(loss, hidden)[0]


@contextmanager
def watch_gradients(linears: dict[str, nn.Module], moments: Moments, totals: dict[str, Tensor]) -> Iterator[None]:
    """Add the gradient at every linear's output to `moments`, and dL/dW to `totals`."""

    def hook(name: str) -> Callable[..., None]:
        def watch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            x = args[0].detach()
            output.register_hook(lambda gradient: add_gradient(moments.outputs, totals, name, x, gradient))

        return watch

    handles = [module.register_forward_hook(hook(name)) for name, module in linears.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def add_gradient(
    outputs: dict[str, OutputMoments], totals: dict[str, Tensor], name: str, x: Tensor, gradient: Tensor
) -> None:
    """Add one batch: x (..., n) at a linear's input and dL/dy (..., m) at its output, the first axis being windows."""
    g = gradient.detach().float().reshape(len(gradient), -1, gradient.shape[-1])
    per_window = g.transpose(1, 2) @ x.float().reshape(len(x), -1, x.shape[-1])
    flat = g.flatten(0, 1)
    moments = outputs.setdefault(name, OutputMoments.empty(flat.shape[1], flat.device))
    moments.gram += (flat.T @ flat).double()
    moments.fisher_rows += per_window.double().square().sum((0, 2))
    moments.fourth += flat.square().sum(1).double().square().sum().item()
    moments.tokens += len(flat)
    moments.windows += len(g)
    totals[name] = totals.get(name, 0) + per_window.sum(0)
