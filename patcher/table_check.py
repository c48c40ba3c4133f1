"""Whether a module's thresholds are for the scores that an attention call has."""

from __future__ import annotations

import logging
import math

from ..errors import RecipeMismatchError
from .methods import AttentionInputs, Chunk, TopTheta, asking
from .thresholds import ModuleThresholds

logger = logging.getLogger(__name__)


def check_table(
    name: str, method: object, table: ModuleThresholds, inputs: AttentionInputs | Chunk, told: set[str]
) -> None:
    """RecipeMismatchError for scores of another scale than those of module `name` had; a warning, once, for rows that
    the table does not cover.

    told: the warnings that were given, to which this one is added. On a GPU, which would have to be asked for the
    lengths of rows, there is no such warning.
    """
    if table.scale is not None and not math.isclose(table.scale, inputs.scale, rel_tol=1e-4):
        raise RecipeMismatchError(
            f"the thresholds of {name} are for scores scaled by {table.scale:g}, and the model scales by "
            f"{inputs.scale:g}: calibrate anew with `sparsify calibrate`"
        )
    if "outside" in told or not isinstance(method, TopTheta):
        return
    lengths = inputs.visibility.lengths()
    if not asking.answers(lengths) or not bool((table.outside(lengths) & (method.rows_k(lengths) < lengths)).any()):
        return
    told.add("outside")
    logger.warning(
        "rows see fewer than %d or more than %d keys, the range that was calibrated (%s): they use their own exact "
        "top-k; calibrate on longer data to have thresholds for them",
        table.shortest,
        table.longest,
        name,
    )
