"""Faster twins of what methods/ define in torch; optional."""

from __future__ import annotations

from types import ModuleType

from ..methods import TopK, TopTheta
from . import rows

KERNELS: dict[type, ModuleType] = {TopK: rows, TopTheta: rows}


def kernel_of(method: object) -> ModuleType | None:
    """The module with `refusal` and `attend` for a method; None if there is none.

    By the method's own class: what a subclass of it does is not what the kernel does.
    """
    return KERNELS.get(type(method))
