"""What a time was measured on."""

import platform
from pathlib import Path

import torch


def machine_name(device: torch.device) -> str:
    """The device with what else a time depends on: torch's version and, on a CPU, the number of threads."""
    count = torch.get_num_threads()
    threads = "" if device.type == "cuda" else f", {count} thread{'s' * (count > 1)}"
    return f"{processor(device)}{threads}, torch {torch.__version__}"


def processor(device: torch.device) -> str:
    """The GPU's name, or else the CPU's, or what kind it is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
