"""Faster twins of what methods/ define in torch; optional."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from ..methods import Clustered, ClusteredPlain, TopK, TopTheta
from . import clusters, feed_forward, rows
from .triton_library import obstacle

KERNELS: dict[type, ModuleType] = {
    TopK: rows,
    TopTheta: rows,
    Clustered: clusters,
    ClusteredPlain: clusters,
}

# Imported where they are wanted, because that imports Triton.
TRITON_KERNELS = {
    TopK: "triton_rows",
    TopTheta: "triton_rows",
    Clustered: "triton_clusters",
    ClusteredPlain: "triton_clusters",
}


def kernel_of(method: object, device: str) -> ModuleType | None:
    """The module with NAME, `refusal` and `attend` for a method on a type of device; None if there is none. It has
    `prepare` where calls keep something, which is for when a model is patched.

    By the method's own class: what a subclass of it does is not what the kernel does.
    """
    if device != "cuda":
        return KERNELS.get(type(method))
    name = TRITON_KERNELS.get(type(method))
    return None if name is None or obstacle() is not None else import_module(f"{__name__}.{name}")


def feed_forward_kernel_of(device: str) -> ModuleType:
    """The module with NAME, `refusal`, `project_kept` and maybe `prepare` (see kernel_of) for top-k feed-forward on a
    type of device."""
    if device != "cuda" or obstacle() is not None:
        return feed_forward
    return import_module(f"{__name__}.triton_feed_forward")
