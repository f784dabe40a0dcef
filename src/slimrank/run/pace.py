"""How fast this machine is on this model: a few of the operations that a run repeats, measured before it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank.calibrate.stream import Stream, default_batch, parts_at_once
from slimrank.model.compressible import Compressible
from slimrank.numerics.threads import at_once, one_thread

SIDE = 512  # of the matrices that are multiplied and decomposed
TIMED = 0.2  # seconds that an operation is repeated for


@dataclass(frozen=True)
class Pace:
    """Seconds: of one block for one token, of the head for one token, of a float32 multiplication and addition in a
    Gram, and of a float64 eigenproblem over its side cubed. at_once: small eigenproblems that run side by side."""

    block: float
    head: float
    product: float
    eigen: float
    at_once: int = 1

    @classmethod
    def of(cls, model: Compressible, windows: Tensor) -> "Pace":
        """Measured on the first batch of windows (count, tokens)."""
        decoder, device = model.decoder, model.decoder.device
        ids = windows[: default_batch(decoder, windows.shape[1])]
        stream = Stream(decoder, ids, len(ids))
        index = next(index for index, block in enumerate(model.blocks) if block)
        with decoder.weights.hold(index), torch.no_grad():
            block = timed(lambda: decoder.run(index, stream.hidden[0], stream.calls[0][index]), device)
        windows_at_once, tokens_at_once = next(parts_at_once(decoder, stream.ids[0]))
        some = stream.ids[0][windows_at_once, tokens_at_once]
        states = stream.hidden[0][windows_at_once, tokens_at_once].to(device)
        with decoder.weights.hold(None), torch.no_grad():
            head = timed(lambda: decoder.head(some, states), device)
        gram = torch.randn(SIDE, SIDE, device=device)
        product = timed(lambda: gram @ gram, device) / SIDE**3
        square = (gram @ gram.T).double()
        with one_thread(square):
            eigen = timed(lambda: torch.linalg.eigh(square), device) / SIDE**3
        return cls(block / ids.numel(), head / some.numel(), product, eigen, at_once((SIDE, SIDE), device))

    def decomposing(self, shape: tuple[int, int]) -> float:
        """Seconds of one decomposition of a weight (m, n), those of small ones being shared by the threads."""
        rows, columns = shape
        small = self.at_once if max(shape) <= 4 * SIDE else 1
        return (self.eigen * min(shape) ** 3 + 4 * self.product * max(shape) * rows * columns) / small


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a run, the mean of those in TIMED seconds after a first one; the device is waited for.

    A mean, since on a machine that others use as well the quickest run is one that they did not interrupt.
    """

    def once() -> float:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    once()
    runs = [once()]
    while sum(runs) < TIMED:
        runs.append(once())
    return sum(runs) / len(runs)
