"""Backpropagation through a decoder a block at a time, with the autograd graph of one block in memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from slimrank.calibrate.collect import require_finite
from slimrank.calibrate.stream import Part, Stream, default_batch, parts_at_once
from slimrank.model.decoder import Decoder
from slimrank.runtime.track import Track, no_track

Loss = Callable[[Tensor, Part], Tensor]  # of logits (windows, tokens, vocabulary) and their part of the batch


class States:
    """The hidden states before every block, read backwards: held for every k-th block, the others recomputed."""

    def __init__(self, decoder: Decoder, ids: Tensor, track: Track = no_track) -> None:
        self._decoder, depth = decoder, len(decoder)
        batch = default_batch(decoder, ids.shape[1])
        first = Stream(decoder, ids[:batch], batch)
        size = first.nbytes * len(ids) // len(ids[:batch])
        self._every = stride(depth, decoder.states_room.host // max(size, 1))
        stream = Stream(decoder, ids, batch, copies=sets_held(decoder, size))
        self._held: dict[int, list[Tensor]] = {}
        for _ in track(range(depth), "reading", depth):
            if stream.depth % self._every == 0:
                self._held[stream.depth] = list(stream.hidden)
            stream.skip(1)
        self.ids, self.calls, self.last, self.home = stream.ids, stream.calls, stream.hidden, stream.home

    @torch.no_grad()
    def before(self, index: int) -> list[Tensor]:
        """The hidden states before block `index`, by batch; call it from the last block to the first."""
        if index not in self._held:
            for depth in range(index - index % self._every, index):
                self._held[depth + 1] = [
                    self.home.put(self._decoder.run(depth, hidden, self.calls[batch][depth]))
                    for batch, hidden in enumerate(self._held[depth])
                ]
        return self._held.pop(index)


def stride(depth: int, sets: int) -> int:
    """The least k with depth / k + k <= sets, the sets of states that fit; sqrt(depth), the least sum, if none does."""
    fitting = (k for k in range(1, depth + 1) if -(-depth // k) + k <= sets)
    return next(fitting, round(depth**0.5))


def sets_held(decoder: Decoder, size: int) -> int:
    """How many sets of hidden states, of `size` bytes each, `States` holds."""
    every = stride(len(decoder), decoder.states_room.host // max(size, 1))
    return -(-len(decoder) // every) + every


def head_gradient(decoder: Decoder, ids: Tensor, hidden: Tensor, loss: Loss) -> Tensor:
    """dL/d hidden of a batch's last hidden states, a part at a time to limit the logits in memory."""
    gradient = torch.empty_like(hidden, device=decoder.device)
    for part in parts_at_once(decoder, ids):
        states = hidden[part].to(decoder.device).detach().requires_grad_()
        with torch.enable_grad():
            value = loss(decoder.head(ids[part], states).float(), part)
            gradient[part] = torch.autograd.grad(value, states)[0]
    return gradient


def step_back(decoder: Decoder, states: States, gradients: list[Tensor], index: int) -> list[Tensor]:
    """Turn the gradients at the output of block `index`, by batch, into those at its input, in place.

    Returns the input, by batch.

    Raises:
        SlimrankError: if a gradient is not finite.
    """
    inputs = states.before(index)
    for batch, before in enumerate(inputs):
        before = before.to(decoder.device).detach().requires_grad_()
        with torch.enable_grad():
            after = decoder.run(index, before, states.calls[batch][index])
            (gradient,) = torch.autograd.grad(after, before, gradients[batch].to(after.device))
        gradients[batch] = states.home.put(gradient)
    for gradient in gradients:
        require_finite(gradient, f"the gradient at the input of {decoder.prefix}.{index}")
    return inputs
