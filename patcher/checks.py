"""What the proof of patch found."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import NotPatchableError
from .binding.modules import alike


@dataclass(frozen=True)
class Check:
    """One thing that was shown, or not. error: the measured relative difference, None where there is no number.

    skipped: why it says nothing of this model, which passes then; None where it was made.
    """

    name: str
    passed: bool
    error: float | None = None
    modules: tuple[str, ...] = ()
    skipped: str | None = None


class ProofFailedError(NotPatchableError):
    """A check failed; `checks` holds those that were run, the failed one last."""

    def __init__(self, checks: list[Check]) -> None:
        failed = checks[-1]
        by = f" (off by {failed.error:.2g} of the largest output)" if failed.error is not None else ""
        where = ", ".join(failed.modules) or "all planned modules together"
        told = f"the patch is not sound on this model: {failed.name}: failed for {where}{by}; nothing was written"
        if failed.modules:
            told += f"; --set '{alike(failed.modules[0])}=none' leaves the first and its likes dense"
        super().__init__(told)
        self.checks = checks
