"""The memory that a computation takes at its peak."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_of(run: Callable[[], Any], device: torch.device) -> int | None:
    """Bytes that `run` took at its peak on top of what was there: device memory on CUDA, else the process's.

    None where the system has no Linux-like /proc.
    """
    before = begin_peak(device)
    run()
    after = peak(device)
    return None if before is None or after is None else after - before


def begin_peak(device: torch.device) -> int | None:
    """Let `peak` begin anew: the bytes in use now, None as there."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return int(torch.cuda.memory_allocated(device))
    try:
        ctypes.CDLL(None).malloc_trim(0)
        _RESET.write_text("5")  # the high-water mark starts again from now
        return _kilobytes("VmRSS") * 1024
    except (OSError, AttributeError):
        return None


def peak(device: torch.device) -> int | None:
    """The most bytes in use since `begin_peak`: device memory on CUDA, else the process's.

    None where the system has no Linux-like /proc.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        return _kilobytes("VmHWM") * 1024
    except OSError:
        return None


def _kilobytes(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1])
