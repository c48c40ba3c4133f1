"""Faster twins of what methods/ define in torch; optional."""

from __future__ import annotations

from types import ModuleType

from ..methods import Clustered, ClusteredPlain, TopK, TopTheta
from . import clusters, rows

KERNELS: dict[type, ModuleType] = {
    TopK: rows,
    TopTheta: rows,
    Clustered: clusters,
    ClusteredPlain: clusters,
}


def kernel_of(method: object) -> ModuleType | None:
    """The module with `refusal` and `attend` for a method; None if there is none.

    By the method's own class: what a subclass of it does is not what the kernel does.
    """
    return KERNELS.get(type(method))
