"""Several processes at work on one compression, as torchrun starts them; one process alone pays nothing for it.

All processes take the same steps. Each sums over its share of the windows and the sums are added up; what would be the
same work everywhere is dealt out (`World.apart`) and handed over as finished pieces; the first process alone writes.
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
TIMEOUT = timedelta(hours=2)  # a process that ends is noticed at once; this is for one that hangs


@dataclass
class World:
    """The processes of a run. rank: this one's number; size: how many there are; local: how many on this machine.

    Every method that speaks to the others must be called by all of them, in the same order.

    Raises:
        SlimrankError: where another process has ended or does not answer.
    """

    rank: int = 0
    size: int = 1
    local: int = 1
    together: bool = True

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    @property
    def follows(self) -> bool:
        """Whether what the first process makes counts, and not what this one does."""
        return self.together and not self.main

    def part(self, count: int) -> slice:
        """This process's share of `count` windows, neighbours staying together.

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
        """This process's run of `items`, so that all have about the same cost; every item is some process's."""
        mine, before, whole = [], 0.0, sum(costs)
        for item, cost in zip(items, costs, strict=True):
            place = int((before + cost / 2) / whole * self.size) if whole else 0
            if min(place, self.size - 1) == self.rank:  # what costs nothing may come after all that costs something
                mine.append(item)
            before += cost
        return mine

    def add_up(self, *sums: Tensor) -> None:
        """Turn each process's sums into the sums of all, in place.

        The same bits everywhere; they differ from those of one process by the order of the summands.
        """
        if self.size > 1:
            for one in sums:
                if one.numel():
                    self._reduce(one)

    def total(self, value: float) -> float:
        """The sum of every process's number."""
        if self.size == 1:
            return value
        number = torch.tensor([value], dtype=torch.float64)
        self._reduce(number)
        return number.item()

    def from_main(self, make: Callable[[], T]) -> T:
        """What `make` gives in the first process, where alone it is called."""
        if self.size == 1:
            return make()
        given = [make() if self.main else None]
        with _answered():
            dist.broadcast_object_list(given, src=0, device=torch.device("cpu"))
        return given[0]  # type: ignore[return-value]

    def gathered(self, mine: dict[str, T]) -> dict[str, T]:
        """Every process's entries."""
        if self.size == 1:
            return mine
        found: list[Any] = [None] * self.size
        with _answered():
            dist.all_gather_object(found, mine)
        return {key: value for one in found for key, value in one.items()}

    def barrier(self) -> None:
        """Wait for all."""
        self.total(0)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Each process for itself: inside, what it saves is its own, and nothing is summed; ends when all have ended.

        It begins when all have begun, so that what one finishes is not yet seen by one that still looks what is there.
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
        """Whether this process is the one to act, all others waiting; each for itself while they work apart."""
        if self.size == 1 or not self.together:
            yield True
            return
        self.barrier()
        yield self.main
        self.barrier()

    def place(self, device: str) -> str:
        """The device of this process, where `device` is what the command was given.

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
    """This process among those that torchrun has started; alone where it has started none. device: as --device has it.

    Of several processes that fail together, the first one alone raises; the others end quietly, with its status.
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
        if _told(store):
            time.sleep(1)  # torchrun ends all when one has ended: the first is to have told why
            raise SystemExit(getattr(error, "status", 1)) from error
        raise
    dist.destroy_process_group()


def _told(store: Any) -> bool:
    """Whether another process has failed before."""
    with suppress(RuntimeError):
        return store.add("slimrank/failed", 1) > 1
    return False


@contextmanager
def _answered() -> Iterator[None]:
    """Turn what the backends raise into a sentence."""
    try:
        yield
    except RuntimeError as error:
        raise SlimrankError(
            "Another process of this run has ended or does not answer: see what it or the system's log says; "
            "the same command goes on where this one stopped."
        ) from error
