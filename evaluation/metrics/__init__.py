"""Exact match and F1 as SQuAD defines them, for the two versions of the data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .squad_v1 import SquadV1
    from .squad_v2 import SquadV2


def make_metric(version_2: bool) -> SquadV1 | SquadV2:
    """The metric for questions that all have an answer, or (`version_2`) for those where some have none."""
    # Imported here because `evaluate`, which these classes extend, takes seconds to import.
    if version_2:
        from .squad_v2 import SquadV2

        return SquadV2()
    from .squad_v1 import SquadV1

    return SquadV1()
