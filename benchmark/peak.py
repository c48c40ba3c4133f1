"""Memory in use and its peak: of this process for the CPU, of what torch has allocated for CUDA."""

from __future__ import annotations

import sys

import psutil
import torch


def used(device: torch.device) -> int | None:
    """Bytes in use now; None where the device does not tell."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return int(psutil.Process().memory_info().rss) if device.type == "cpu" else None


def forget_peak(device: torch.device) -> None:
    """Peaks begin anew, on CUDA and on Linux; elsewhere they only rise."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        try:
            with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
                file.write("5")
        except OSError:
            pass  # where it is refused, peaks only rise as well


def peak(device: torch.device) -> int | None:
    """The most bytes since peaks began anew; None where the device does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type != "cpu":
        return None
    if sys.platform == "linux":
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM"))
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
