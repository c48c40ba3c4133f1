"""The native library: which build of csrc/ this processor runs, or why there is none."""

from __future__ import annotations

import importlib
import os
from functools import cache
from pathlib import Path
from types import ModuleType

import torch

# Builds by what torch itself uses on this processor, so that ATEN_CPU_CAPABILITY sets both; a missing one falls back on
# the next.
BUILDS = {"AVX512": "_avx512", "AVX2": "_avx2", "DEFAULT": "_portable"}
SWITCH = "SPARSIFY_NATIVE"
BUILD_NOTE = Path(__file__).with_name("build-note.txt")


@cache
def native() -> ModuleType | None:
    """The build for this processor; None where there is none or the environment variable SPARSIFY_NATIVE is 0."""
    if os.environ.get(SWITCH) == "0":
        return None
    names = list(BUILDS.values())
    for name in names[names.index(BUILDS.get(torch.backends.cpu.get_cpu_capability(), "_portable")) :]:
        try:
            # After torch, so that both share its OpenMP pool.
            return importlib.import_module(f"{__package__}.{name}")
        except ImportError:
            continue
    return None


def describe() -> str:
    """For `sparsify env`: the build in use, or why attention runs in torch."""
    library = native()
    if library is not None:
        return f"native ({library.__name__.rpartition('._')[2]}, {library.lanes()} lanes)"
    if os.environ.get(SWITCH) == "0":
        return f"torch, because {SWITCH} is 0"
    if BUILD_NOTE.exists():
        return f"torch, because the native kernels were not built: {BUILD_NOTE.read_text(encoding='utf-8').strip()}"
    return "torch, because the native kernels were not built"
