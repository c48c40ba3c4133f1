"""Opening what a command works on, and what a person is told meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import terminal

if TYPE_CHECKING:
    from .commands.target import Target
    from .evaluation.items import ItemSet
    from .patcher.binding.loading import LoadedModel, LoadOptions


@dataclass(frozen=True)
class Opening:
    """How a command opens its model, and how much it says. model: where a recipe's model is now, if it moved."""

    loading: LoadOptions
    model: str | None
    quiet: bool
    verbose: bool

    @classmethod
    def of(cls, *, quiet: bool, verbose: bool, model: str | None = None, seed: int = 0, **loading: Any) -> Opening:
        """From the options of a command. seed: taken by every command, also where nothing is drawn."""
        from .patcher.binding.loading import LoadOptions

        return cls(LoadOptions(**loading), model, quiet, verbose)

    def start(self, target: str | None) -> None:
        """Says what will be loaded before the first slow import, and misses ./sparsified before data or model are."""
        self.say(f"loading {'./sparsified' if target is None else target} ...")
        terminal.set_up(quiet=self.quiet, verbose=self.verbose)
        if target is None:
            from .commands.target import require_default_recipe

            require_default_recipe()

    def load(self, model: str) -> LoadedModel:
        """A dense model by name; raises what load_model raises."""
        from .commands.target import load_named

        loaded = load_named(model, self.loading)
        self._hint(loaded)
        return loaded

    def target(self, argument: str | None) -> Target:
        """A recipe or model with what is to be done to it; raises what commands.target.open_target raises."""
        from .commands.target import open_target

        opened = open_target(argument, self.loading, model=self.model)
        self._tell(opened)
        return opened

    def targets(self, arguments: list[str]) -> list[Target]:
        """Recipes for one model; raises what commands.target.open_targets raises."""
        from .commands.target import open_targets

        opened = open_targets(arguments, self.loading, model=self.model)
        self._tell(opened[0])
        return opened

    def say(self, text: str) -> None:
        """A line on stderr, unless quiet."""
        terminal.say(text, quiet=self.quiet)

    def progress(self, total: int, what: str, *, processes: int = 1) -> AbstractContextManager[Callable[[int], None]]:
        """As in terminal.py, unless quiet."""
        return terminal.progress(total, what, quiet=self.quiet, processes=processes)

    def _tell(self, opened: Target) -> None:
        """What a person should know of what was opened."""
        from .commands.target import DEFAULT_K
        from .patcher.preset import ranges

        self._hint(opened.loaded)
        if opened.name is None:
            but = f" but {ranges(opened.dense_layers)}" if opened.dense_layers else ""
            self.say(f"no recipe named: starting from top-k attention with k = {DEFAULT_K} on every layer{but}")

    def _hint(self, loaded: LoadedModel) -> None:
        model = loaded.model
        if model.device.type == "cpu" and str(model.dtype) == "torch.bfloat16":
            self.say("hint: on a CPU, --dtype float32 is faster than bfloat16 for prompts")


def items_of(dataset: str, split: str | None, default_split: str) -> ItemSet:
    """The items of a data set; raises what load_items raises."""
    from .evaluation.sources import load_items

    return load_items(dataset, split, default_split=default_split)
