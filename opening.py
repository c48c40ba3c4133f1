"""Opening what a command works on, and what a person is told meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .terminal import say, set_up

if TYPE_CHECKING:
    from .commands.target import Target
    from .evaluation.items import ItemSet
    from .patcher.binding.loading import LoadedModel, LoadOptions


def start(target: str | None, quiet: bool, verbose: bool) -> None:
    """Says what will be loaded before the first slow import, and misses ./sparsified before data or model are."""
    say(f"loading {'./sparsified' if target is None else target} ...", quiet=quiet)
    set_up(quiet=quiet, verbose=verbose)
    if target is None:
        from .commands.target import require_default_recipe

        require_default_recipe()


def load(model: str, options: LoadOptions, quiet: bool) -> LoadedModel:
    """A dense model by name; raises what load_model raises."""
    from .commands.target import load_named

    loaded = load_named(model, options)
    _hint(loaded.model, quiet)
    return loaded


def open_target(argument: str | None, options: LoadOptions, model: str | None, quiet: bool) -> Target:
    """A recipe or model with what is to be done to it; raises what commands.target.open_target raises."""
    from .commands import target

    return _told(target.open_target(argument, options, model=model), quiet)


def open_targets(arguments: list[str], options: LoadOptions, model: str | None, quiet: bool) -> list[Target]:
    """Recipes for one model; raises what commands.target.open_targets raises."""
    from .commands import target

    opened = target.open_targets(arguments, options, model=model)
    _told(opened[0], quiet)
    return opened


def _told(opened: Target, quiet: bool) -> Target:
    """What a person should know of it."""
    from .commands.target import DEFAULT_K

    _hint(opened.loaded.model, quiet)
    if opened.name is None:
        say(f"no recipe named: starting from top-k attention with k = {DEFAULT_K} on every layer", quiet=quiet)
    return opened


def _hint(model: Any, quiet: bool) -> None:
    if model.device.type == "cpu" and str(model.dtype) == "torch.bfloat16":
        say("hint: on a CPU, --dtype float32 is faster than bfloat16 for prompts", quiet=quiet)


def items_of(dataset: str, split: str | None, default_split: str) -> ItemSet:
    """The items of a data set; raises what load_items raises."""
    from .evaluation.sources import load_items

    return load_items(dataset, split, default_split=default_split)
