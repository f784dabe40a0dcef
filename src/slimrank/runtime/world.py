"""Several processes, started by torchrun, that work on one compression.

All processes take the same steps. Each sums over its share of the windows, and the sums are added up. Other work is
divided (`World.apart`) and exchanged as pieces on disk. Only the first process writes the result.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from slimrank.errors import SlimrankError, UsageError

T = TypeVar("T")
TIMEOUT = timedelta(hours=2)  # for processes that hang; one that ends is noticed at once


@dataclass
class World:
    """The processes of a run. rank: this one's index; size: their number; local: the number on this machine.

    together: False inside `apart`. Methods that communicate must be called by all processes in the same order.

    Raises:
        SlimrankError: if another process has ended or does not answer.
    """

    rank: int = 0
    size: int = 1
    local: int = 1
    together: bool = True

    @property
    def main(self) -> bool:
        """Whether this is the first process, which writes and prints."""
        return self.rank == 0

    @property
    def follows(self) -> bool:
        """Whether this process must take over the first one's results."""
        return self.together and not self.main

    def part(self, count: int) -> slice:
        """This process's contiguous share of `count` windows.

        Raises:
            UsageError: if there are fewer windows than processes.
        """
        if self.size == 1:
            return slice(0, count)
        if count < self.size:
            raise UsageError(
                f"{self.size} processes cannot share {count} windows: start fewer by --nproc-per-node, "
                "or read more windows."
            )
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def share(self, windows: Tensor) -> Tensor:
        """This process's share of windows (count, tokens)."""
        return windows[self.part(len(windows))]

    def dealt(self, items: Sequence[T], costs: Sequence[float]) -> list[T]:
        """This process's contiguous share of `items`, of about equal cost for all processes."""
        mine, before, whole = [], 0.0, sum(costs)
        for item, cost in zip(items, costs, strict=True):
            place = int((before + cost / 2) / whole * self.size) if whole else 0
            if min(place, self.size - 1) == self.rank:  # items of cost 0 at the end would be beyond it
                mine.append(item)
            before += cost
        return mine

    def add_up(self, *sums: Tensor) -> None:
        """Add up the tensors over all processes, in place.

        The result has the same bits in all processes, and differs from one process's by the order of summation.
        """
        if self.size > 1:
            for tensor in sums:
                if tensor.numel():
                    self._reduce(tensor)

    def total(self, value: float) -> float:
        """The sum of `value` over all processes."""
        if self.size == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64)
        self._reduce(number)
        return number.item()

    def from_main(self, make: Callable[[], T]) -> T:
        """The result of `make`, called in the first process only."""
        if self.size == 1:
            return make()
        given = [make() if self.main else None]
        with _answered():
            dist.broadcast_object_list(given, src=0, device=torch.device("cpu"))
        return given[0]  # type: ignore[return-value]

    def gathered(self, mine: dict[str, T]) -> dict[str, T]:
        """The union of all processes' dicts."""
        if self.size == 1:
            return mine
        parts: list[Any] = [None] * self.size
        with _answered():
            dist.all_gather_object(parts, mine)
        return {key: value for part in parts for key, value in part.items()}

    def barrier(self) -> None:
        """Wait for all processes."""
        self.total(0)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Inside, each process works and saves pieces alone, and nothing is summed.

        There are barriers at both ends, so that no process sees a piece of this step before it has divided the work.
        """
        self.barrier()
        before, self.together = self.together, False
        try:
            yield
        finally:
            self.together = before
        self.barrier()

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether this process acts: the first one, between two barriers; apart, every one, without barriers."""
        if self.size == 1 or not self.together:
            yield True
            return
        self.barrier()
        yield self.main
        self.barrier()

    def place(self, device: str) -> str:
        """The device of this process; device: the command's option.

        Raises:
            UsageError: if it names one CUDA device for several processes, or there are fewer than processes.
        """
        if self.size == 1 or not device.startswith("cuda"):
            return device
        if device != "cuda":
            raise UsageError(f"--device {device} names one device for {self.size} processes: give --device cuda.")
        if torch.cuda.device_count() < self.local:
            raise UsageError(
                f"This machine has {torch.cuda.device_count()} CUDA devices for {self.local} processes: "
                "lower --nproc-per-node."
            )
        return f"cuda:{os.environ['LOCAL_RANK']}"

    def _reduce(self, tensor: Tensor) -> None:
        if not self.together:
            raise RuntimeError("nothing is summed while the processes work apart")
        with _answered():
            dist.all_reduce(tensor)


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join the processes that torchrun has started, or run alone; device: the command's option.

    If several processes fail, only the first to fail raises its error; the others exit with their error's status.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    world = World(rank, size, int(os.environ["LOCAL_WORLD_SIZE"]))
    try:
        if device.startswith("cuda") and torch.cuda.is_available():
            torch.cuda.set_device(world.place(device))
            dist.init_process_group("cpu:gloo,cuda:nccl", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        else:
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        yield world
    except Exception as error:
        if _failed_before(store):
            time.sleep(1)  # torchrun ends all processes when one ends: let the first report its error
            raise SystemExit(getattr(error, "status", 1)) from error
        raise
    dist.destroy_process_group()


def _failed_before(store: Any) -> bool:
    """Record that this process has failed; whether another one had before."""
    with suppress(RuntimeError):
        return store.add("slimrank/failed", 1) > 1
    return False


@contextmanager
def _answered() -> Iterator[None]:
    """Turn a RuntimeError of torch.distributed into a SlimrankError."""
    try:
        yield
    except RuntimeError as error:
        raise SlimrankError(
            "Another process of this run has ended or does not answer: see its output or the system's log; "
            "the same command resumes where this one stopped."
        ) from error
