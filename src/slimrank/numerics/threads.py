"""Small problems of linear algebra, several in parallel, each in one thread.

LAPACK's own threads do not pay for small matrices: on two cores of a busy machine a float64 eigenproblem of size 576
took 0.04 s in one thread and 8 s in two.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
Job = Callable[[], T]

SMALL = 1024  # size up to which one thread factors a square matrix as fast as all threads
LARGE = 4096  # longer side of a weight above which several at once would take too much memory


def is_small(shape: Sequence[int], device: torch.device) -> bool:
    """Whether the problems of a weight (m, n) are solved in parallel, each in one thread (on a CPU only)."""
    return device.type == "cpu" and min(shape) <= SMALL and max(shape) <= LARGE


def at_once(shape: Sequence[int], device: torch.device) -> int:
    """The number of weights of this shape that `in_threads` works on at a time."""
    return torch.get_num_threads() if is_small(shape, device) else 1


@contextmanager
def one_thread(matrix: Tensor) -> Iterator[None]:
    """Inside, torch uses one thread if the matrix is on a CPU and its smaller side is at most SMALL."""
    threads = torch.get_num_threads()
    if threads == 1 or matrix.device.type != "cpu" or min(matrix.shape) > SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_threads(jobs: Iterable[tuple[bool, Job[T]]]) -> Iterator[T]:
    """Yield the results of (small, job) pairs in order: small jobs in parallel, each in one thread, others alone.

    A job is taken from the iterable only when a thread is free, so that no more than run are in memory.
    """
    threads = torch.get_num_threads()
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "slimrank-factor") as pool:
        try:
            for small, job in jobs:
                if small and threads > 1:
                    torch.set_num_threads(1)
                    waiting.append(pool.submit(job))
                    if len(waiting) >= threads:
                        yield waiting.popleft().result()
                    continue
                while waiting:
                    yield waiting.popleft().result()
                torch.set_num_threads(threads)
                yield job()
            while waiting:
                yield waiting.popleft().result()
        finally:
            torch.set_num_threads(threads)
