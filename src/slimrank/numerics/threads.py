"""Small problems of linear algebra, several at once and each in one thread.

On matrices this small LAPACK's own threads wait for each other longer than they work: on two cores of a busy machine
an eigenproblem of 576 in float64 took 0.04 s in one thread and 8 s in two.
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

SMALL = 1024  # rows of the square matrices that one thread factors as fast as all
LARGE = 4096  # the longer side of a weight from which on several at once would take too much memory


def is_small(shape: Sequence[int], device: torch.device) -> bool:
    """Whether a weight (m, n) gives problems of linear algebra that had better be solved side by side, on a CPU."""
    return device.type == "cpu" and min(shape) <= SMALL and max(shape) <= LARGE


def at_once(shape: Sequence[int], device: torch.device) -> int:
    """How many weights of this shape `in_threads` holds at a time."""
    return torch.get_num_threads() if is_small(shape, device) else 1


@contextmanager
def one_thread(matrix: Tensor) -> Iterator[None]:
    """Inside, torch computes in one thread if this matrix's smaller side is SMALL, and as before afterwards."""
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
    """The jobs' results in order: small ones, so marked, in as many threads at once as torch has, others by themselves.

    A job is asked for when a thread is free for it, so that no more of them are held than run.
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
