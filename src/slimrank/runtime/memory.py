"""Memory limits of a run, and how they are divided."""

import ctypes
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from slimrank.errors import UsageError

MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h

UNITS = {
    "": 1,
    "B": 1,
    **{f"{p}{b}": n**i for i, p in enumerate("KMGT", 1) for b, n in (("", 1000), ("B", 1000), ("iB", 1024))},
}
SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?(?:iB|B)?)\s*", re.ASCII)


class Room(NamedTuple):
    """Bytes that the hidden states of one set of windows may take on the device and in host memory."""

    device: int = 2**62
    host: int = 2**62


@dataclass(frozen=True)
class Limits:
    """Bytes. host: of host memory in all; weights: of cached parts of the model; states: of hidden states, see Room."""

    host: int
    weights: int
    states: Room

    @classmethod
    def of(cls, memory: int | None, device: str) -> "Limits":
        """Limits as shares of `memory` (bytes, by default what is free) and of the device's free memory."""
        host = memory or free_memory()
        if not device.startswith("cuda") or not torch.cuda.is_available():
            return cls(host, host // 8, Room(host=host // 8))
        free = torch.cuda.mem_get_info(torch.device(device))[0]
        return cls(host, free // 3, Room(device=free // 12, host=host // 2))


def give_memory_back() -> None:
    """Make glibc return freed blocks of 1 MiB and more to the system at once.

    By default its threshold grows with the blocks freed, which kept half a gigabyte in large runs.
    """
    with suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)


def trim() -> None:
    """Return what was freed to the system, between steps; glibc keeps it otherwise, in holes that the next can't use.

    It held 0.6 GB of the 1.2 GB that a small model took after calibration.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def parse_size(text: str, option: str = "--memory") -> int:
    """Bytes of `8GiB`, `8GB`, `512M` or a plain number.

    Raises:
        UsageError: for anything else.
    """
    match = SIZE.fullmatch(text)
    size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    if size < 1:
        raise UsageError(f"{option} {text!r} is not a size: give one such as 8GiB.")
    return size


def free_memory() -> int:
    """Bytes of memory available to this process: the machine's, or its control group's if that is less."""
    available = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        cache = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        used = int((group / "memory.current").read_text()) - (int(cache[1]) if cache else 0)
        available.append(int(limit) - used)
    return max(min(available), 2**28)
