"""Training-free sparse attention for pretrained Hugging Face models: patch, calibrate, evaluate.

The names below are imported when they are first used, so that importing the package stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import calibrate, evaluate, load, patch, unpatch
    from .commands.push import push_to_hub
    from .errors import DataError, NotPatchableError, RecipeMismatchError, SparsifyError, UsageError
    from .patcher.binding.loading import LoadedModel, LoadOptions
    from .patcher.binding.patching import Patch
    from .patcher.meter import Meter
    from .patcher.methods import Clustered, ClusteredPlain, TopK, TopKFeedForward, TopTheta
    from .patcher.recipe import Recipe, load_recipe, save_recipe

_HOMES = {
    ".api": ("calibrate", "evaluate", "load", "patch", "unpatch"),
    ".commands.push": ("push_to_hub",),
    ".errors": ("DataError", "NotPatchableError", "RecipeMismatchError", "SparsifyError", "UsageError"),
    ".patcher.binding.loading": ("LoadedModel", "LoadOptions"),
    ".patcher.binding.patching": ("Patch",),
    ".patcher.meter": ("Meter",),
    ".patcher.methods": ("Clustered", "ClusteredPlain", "TopK", "TopKFeedForward", "TopTheta"),
    ".patcher.recipe": ("Recipe", "load_recipe", "save_recipe"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Clustered",
    "ClusteredPlain",
    "DataError",
    "LoadOptions",
    "LoadedModel",
    "Meter",
    "NotPatchableError",
    "Patch",
    "Recipe",
    "RecipeMismatchError",
    "SparsifyError",
    "TopK",
    "TopKFeedForward",
    "TopTheta",
    "UsageError",
    "calibrate",
    "evaluate",
    "load",
    "load_recipe",
    "patch",
    "push_to_hub",
    "save_recipe",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
