"""The exceptions that a person may meet, each with the exit code that the command line gives it."""

from __future__ import annotations


class SparsifyError(Exception):
    """Something went wrong that one sentence can explain: the message names the input and the fix."""

    exit_code = 1


class UsageError(SparsifyError, ValueError):
    """An option or argument has a value that cannot be used."""

    exit_code = 2


class DataError(SparsifyError, ValueError):
    """A data set or a saved file is missing, empty or malformed."""

    exit_code = 1


class NotPatchableError(SparsifyError):
    """The model, or a module of it, cannot be patched as asked; nothing was changed."""

    exit_code = 4


class RecipeMismatchError(NotPatchableError):
    """The recipe was made for another model."""


class UnsupportedAttentionArgument(NotPatchableError, NotImplementedError):
    """A model handed its attention function an argument that sparse attention does not know."""


def require_at_least_one(**options: int | None) -> None:
    """UsageError that names the first option whose value is below 1; None is an option that was not given."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
