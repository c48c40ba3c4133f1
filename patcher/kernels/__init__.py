"""Faster twins of what methods/ define in torch, by the name of the method; optional."""

from __future__ import annotations

from types import ModuleType

from . import rows

KERNELS: dict[str, ModuleType] = {"top-k": rows, "top-theta": rows}


def kernel_of(name: str) -> ModuleType | None:
    """The module with `refusal` and `attend` for a method; None if there is none."""
    return KERNELS.get(name)
