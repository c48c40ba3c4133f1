"""Compiles Triton kernels for a GPU that is not there.

    python tests/triton_builds.py 90 triton_row_calls

runs the functions in CALLS of a module of tests/ on CPU tensors. Every kernel that they launch is compiled for that
compute capability and not run; what it needs is printed, one JSON object a line.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


class AbsentGpu:
    """What Triton asks of a driver before it launches anything."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


def compiled(capability: int, calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """The kernels that the calls launch, as triton.compile gives them."""
    found: dict[str, Any] = {}
    run = JITFunction.run

    def compile_alone(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        found[kernel.hash] = kernel
        return kernel

    JITFunction.run = compile_alone
    triton.runtime.driver.set_active(AbsentGpu(capability))
    try:
        for call in calls:
            call()
    finally:
        JITFunction.run = run
    return list(found.values())


def needs(kernel: Any) -> dict[str, Any]:
    """Bytes of shared memory, registers a thread, warps, and bytes of registers spilled, by name of the kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        told = subprocess.run(
            [TOOLS / "cuobjdump", "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", told).group(1)) for name in ("REG", "STACK"))  # type: ignore[union-attr]
    return {
        "kernel": kernel.metadata.name,
        "shared": kernel.metadata.shared,
        "registers": registers,
        "spilled": stack,
        "warps": kernel.metadata.num_warps,
    }


def main() -> None:
    for kernel in compiled(int(sys.argv[1]), importlib.import_module(sys.argv[2]).CALLS):
        print(json.dumps(needs(kernel)), flush=True)


if __name__ == "__main__":
    main()
