"""What the machine allows: the time that reading weights and multiplying must take, and what else took time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from slimrank.serve.one_token import product

_MEGA = 2**20
SLOW = 0.1  # seconds of a product after which no larger one is tried


@dataclass(frozen=True)
class Limits:
    """Measured here: bytes a second from memory and operations a second, in large pieces; bytes of a weight."""

    bandwidth: float
    operations: float
    width: int

    def floor(self, numbers: int, tokens: int) -> tuple[float, str]:
        """The least seconds for `tokens` tokens through `numbers` weights, and what they are bound by."""
        reading = numbers * self.width / self.bandwidth
        computing = 2 * numbers * tokens / self.operations
        return max((reading, "memory"), (computing, "compute"))


def measure_limits(device: torch.device, dtype: torch.dtype) -> Limits:
    """Time a matrix-vector product that no cache holds (128 MiB) and a square product of 2048, or less where slow."""
    weight = torch.zeros(128 * _MEGA // dtype.itemsize // 4096, 4096, device=device, dtype=dtype)
    x = torch.zeros(1, 4096, device=device, dtype=dtype)
    reading = _best(lambda: product(x, weight), device)
    for size in (256, 512, 1024, 2048):
        square = torch.zeros(size, size, device=device, dtype=dtype)
        computing = _best(partial(torch.matmul, square, square), device)
        if computing > SLOW:  # as in bfloat16 on a CPU that has to emulate it
            break
    return Limits(weight.nbytes / reading, 2 * size**3 / computing, dtype.itemsize)


def _best(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def reason(bound: float, gained: float, limits: Limits, numbers: int, tokens: int, seconds: float) -> str | None:
    """Why low rank does not pay where it gains less than half of what it could; None where it does.

    bound: the dense model's weights over this one's; gained: its seconds over this one's, `seconds`.
    """
    if gained - 1 >= (bound - 1) / 2 and gained > 1.05:
        return None
    floor, kind = limits.floor(numbers, tokens)
    said = f"{gained:.2f} times the first model's speed, where {bound:.2f} would be the bound"
    if bound < 1.1:
        return f"{said}: it keeps nearly as many numbers, so its ranks are near the break-even rank mn / (m + n)."
    if seconds > 3 * floor:
        share = 1 - floor / seconds
        return (
            f"{said}: about {share:.0%} of the time is not {_DOING[kind]} but starting many small products, attention "
            "and the framework; larger layers or batches, torch.compile or CUDA graphs help, lower ranks don't."
        )
    return (
        f"{said}: it is {kind}-bound, and two thin products use the device less well than one square product; "
        "a lower rank or a larger model pays more."
    )


_DOING = {"memory": "reading weights", "compute": "multiplying"}
