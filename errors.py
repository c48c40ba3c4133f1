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


OUT_OF_MEMORY = "out of memory: lower --batch-size, or choose a smaller --dtype"
MOST_CHARACTERS = 300  # of a foreign error in a sentence


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is torch's, which may not be imported here; on a CPU it is a RuntimeError of the allocator."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "can't allocate memory" in str(error)


def one_sentence(error: BaseException) -> str:
    """What one line can say of an error, ours or another's."""
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= MOST_CHARACTERS else f"{first[: MOST_CHARACTERS - 3]}..."


# What may go wrong with one of several patched models and leave the others as they are.
FAILURES = (SparsifyError, RuntimeError, MemoryError)


def require_at_least_one(**options: int | None) -> None:
    """UsageError that names the first option whose value is below 1; None is an option that was not given."""
    for name, value in options.items():
        if value is not None and value < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, not {value}")
