"""Versions and hardware, for bug reports and for every saved result."""

from __future__ import annotations

import os
import platform
from importlib import metadata

PACKAGES = ("hf-sparsify", "torch", "transformers", "tokenizers", "datasets", "evaluate", "safetensors", "accelerate")


def package_versions() -> dict[str, str]:
    """Installed versions by distribution name; a missing package is left out."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe_environment() -> dict[str, str]:
    """What a bug report needs, in order: versions, platform, processor, threads, accelerators."""
    import torch

    from .patcher.kernels import library, triton_library

    found = {"python": platform.python_version(), **package_versions(), "platform": platform.platform()}
    found["processor"] = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} torch threads"
    found["cpu capability"] = torch.backends.cpu.get_cpu_capability()
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    else:
        found["cuda"] = f"not available (torch built for {torch.version.cuda or 'CPU only'})"
    found["mps"] = "available" if torch.backends.mps.is_available() else "not available"
    found["attention kernels"] = library.describe()
    found["attention kernels on a GPU"] = triton_library.describe()
    return found


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
