"""The contenders of a benchmark: one loaded model, dense as it was loaded, dense with eager attention, and patched."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from ..patcher.binding.modules import unwrapped
from ..patcher.binding.patching import prepare_patch
from ..patcher.recipe import Recipe

DENSE, EAGER, PATCHED = "dense", "eager", "patched"
ARMS = (DENSE, EAGER, PATCHED)


class Arms:
    """Of one model, which is dense outside of `use`. eager: whether that is one. Raises what apply_plan does."""

    def __init__(self, model: Any, recipe: Recipe, *, eager: bool = True) -> None:
        self.model = cast(Any, unwrapped(model))
        self.patch = prepare_patch(model, recipe.plan, recipe.thresholds)
        self.implementation = str(self.model.config._attn_implementation)
        self.eager = eager

    @property
    def names(self) -> tuple[str, ...]:
        """Without EAGER where it is not wanted, and where the model is that already or cannot be."""
        if not self.eager or self.implementation == "eager":
            return DENSE, PATCHED
        with self.use(EAGER):
            taken = self.model.config._attn_implementation == "eager"
        return ARMS if taken else (DENSE, PATCHED)

    @contextmanager
    def use(self, arm: str) -> Iterator[None]:
        """The model is this contender inside the block."""
        if arm == PATCHED:
            with self.patch.resumed():
                yield
        elif arm == EAGER:
            with _silent("transformers.modeling_utils"):
                self.model.set_attn_implementation("eager")
            try:
                yield
            finally:
                self.model.set_attn_implementation(self.implementation)
        else:
            yield

    def calls(self) -> Counter[str]:
        """Calls of patched modules by the way that they took (see ModulePatch.paths)."""
        return self.patch.paths

    def clear_calls(self) -> None:
        """Counts calls from 0 again."""
        for module in self.patch.module_patches:
            module.paths.clear()


@contextmanager
def _silent(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
