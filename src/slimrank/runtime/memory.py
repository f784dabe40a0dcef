"""How much memory a run may take, and how it is shared out."""

import ctypes
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from slimrank.errors import UsageError

MMAP_THRESHOLD = -3  # of glibc's malloc.h

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
    """Bytes. host: of memory in all; weights: for the parts of the model that are not in use; states: see Room."""

    host: int
    weights: int
    states: Room

    @classmethod
    def of(cls, memory: int | None, device: str) -> "Limits":
        """Shares of `memory`, by default what is free, and of the device's."""
        host = memory or free_memory()
        if not device.startswith("cuda") or not torch.cuda.is_available():
            return cls(host, host // 8, Room(host=host // 8))
        free = torch.cuda.mem_get_info(torch.device(device))[0]
        return cls(host, free // 3, Room(device=free // 12, host=host // 2))


def give_memory_back() -> None:
    """Let glibc give freed blocks of a megabyte and more back to the system at once, rather than keep them in its heap.

    It does so of itself up to a size that grows with what is freed; at size that kept half a gigabyte.
    """
    with suppress(OSError, AttributeError):  # no glibc, no mallopt
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)


def parse_size(text: str) -> int:
    """Bytes of `8GiB`, `8GB`, `512M` or a plain number.

    Raises:
        UsageError: for anything else.
    """
    found = SIZE.fullmatch(text)
    size = int(float(found[1]) * UNITS[found[2]]) if found else 0
    if size < 1:
        raise UsageError(f"--memory {text!r} is not a size: give one such as 8GiB.")
    return size


def free_memory() -> int:
    """What this process could take now, in bytes: the machine's free memory, or its control group's share of it."""
    found = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    if (group / "memory.max").is_file() and (limit := (group / "memory.max").read_text().strip()) != "max":
        cache = re.search(r"^inactive_file (\d+)$", (group / "memory.stat").read_text(), re.MULTILINE)
        used = int((group / "memory.current").read_text()) - (int(cache[1]) if cache else 0)
        found.append(int(limit) - used)
    return max(min(found), 2**28)
