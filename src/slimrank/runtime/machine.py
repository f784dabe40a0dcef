"""What a time was measured on."""

import platform
from pathlib import Path

import torch


def machine_name(device: torch.device) -> str:
    """The device with what else a time depends on: torch's version and, on a CPU, the number of threads."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    threads = torch.get_num_threads()
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"


def processor() -> str:
    """The CPU's name, or what kind it is."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
