"""How long layers take, alone and with random values, since speed depends on shapes only.

A layer is timed as slimrank.optimize leaves it, but for what other layers do for it: products of several layers packed
into one, and orders that a neighbour takes over.
"""

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from slimrank.evaluate.speed import synchronize
from slimrank.forms import form_of
from slimrank.model.units import Shape
from slimrank.runtime.track import Track, no_track
from slimrank.serve.few_tokens import DEVICE, serve, unavailable, units
from slimrank.serve.one_token import use_one_token_products

Call = Callable[[], object]
Clock = Callable[[], float]

COLD = 2**26
"""Bytes of weights that pass between two calls of one layer, so that no cache holds them, as in a large model."""

LEAST, MOST = 7, 41  # rounds
QUICK = 10  # one call in so many is quicker than what is said, since what others do on a machine only adds time
ENOUGH = 30.0  # seconds, after which no round begins that is not needed


@dataclass(frozen=True)
class Layer:
    """A linear, or several that share their input: their shapes (m, n) and the entries of their layers.

    An empty entry is a plain dense layer; name, rank: the line of measurements that it belongs to, and its rank there.
    """

    name: str
    rank: int
    shapes: Sequence[Shape]
    entries: Sequence[dict[str, Any]]

    @property
    def key(self) -> str:
        """A name of its own."""
        return f"{self.name} {self.rank}"

    def made(self, device: torch.device, dtype: torch.dtype) -> nn.ModuleList:
        """The layers, on the device, without biases."""
        layers = nn.ModuleList()
        for (rows, columns), entry in zip(self.shapes, self.entries, strict=True):
            dense = nn.Linear(columns, rows, bias=False, device="meta")
            if not entry:
                dense = dense.to_empty(device=device).to(dtype)
                nn.init.normal_(dense.weight, std=0.02)
                layers.append(dense)
                continue
            shell = form_of(self.name, entry).shell(dense, entry, device, dtype)
            shell.randomize()
            layers.append(shell)
        if self.entries[0]:
            form_of(self.name, self.entries[0]).link_members(self.name, [*layers])  # type: ignore[arg-type]
        return served(layers.eval().requires_grad_(False), device, dtype)

    def calls(self, tokens: int, device: torch.device, dtype: torch.dtype, copies: int = 1) -> list[Call]:
        """Calls of so many such layers, each with weights of its own, all on one input (1, tokens, n)."""
        x = torch.randn(1, tokens, self.shapes[0][1], device=device).to(dtype)
        return [called(self.made(device, dtype), x) for _ in range(copies)]


def called(layers: nn.ModuleList, x: Tensor) -> Call:
    """A call of all layers on x, one after the other."""
    return lambda: [layer(x) for layer in layers]


def served(layers: nn.ModuleList, device: torch.device, dtype: torch.dtype) -> nn.ModuleList:
    """The layers with the device's kernels for few tokens, in place."""
    if device.type != DEVICE:
        use_one_token_products(layers)
    elif unavailable(device, dtype) is None:
        for unit in units(layers):
            serve(unit, device)
    return layers


def weight_bytes(layers: Sequence[Layer], dtype: torch.dtype) -> int:
    """About how many bytes the layers have in floats, of a rank its share of the dense ones, and one at least."""
    return 1 + sum(
        rows * columns * dtype.itemsize * layer.rank // min(rows, columns)
        for layer in layers
        for rows, columns in layer.shapes
    )


def clock_of(device: torch.device) -> Clock:
    """A CPU's time of this process where it has one thread, so that what others do meanwhile does not count; else the
    wall's."""
    return time.process_time if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def busy(device: torch.device) -> str | None:
    """A sentence where others want this machine's cores too, which the clock then counts; None otherwise."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if clock_of(device) is time.process_time or load <= cores + 1:
        return None
    return (
        f"The machine was busy while layers were timed (a load of {load:.1f} on {cores} cores), which slows down long "
        "calls most: time again when it is quiet."
    )


@torch.inference_mode()
def in_turns(calls: Mapping[str, Sequence[Call]], track: Track = no_track, *, clock: Clock) -> dict[str, float]:
    """The seconds of each, one call of each in every round, so that what the machine does meanwhile hits all.

    That is the lowest tenth's largest. The order is another one in every round, since a call is quicker after its like.
    Where there are several of one, they take turns. All are called once before.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    for own in calls.values():
        for call in own:
            call()
    started, order, generator = clock(), list(calls), random.Random(0)
    for turn in track(range(MOST), "timing layers", MOST):
        generator.shuffle(order)
        for name in order:
            times[name].append(seconds_of(calls[name][turn % len(calls[name])], clock))
        if turn + 1 >= LEAST and clock() - started > ENOUGH:
            break
    return {name: sorted(own)[len(own) // QUICK] for name, own in times.items()}


def seconds_of(call: Call, clock: Clock) -> float:
    """Of one call; the device is waited for."""
    synchronize()
    started = clock()
    call()
    synchronize()
    return clock() - started
