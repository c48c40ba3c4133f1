"""How thresholds are calibrated."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import UsageError
from ..patcher.methods.top_theta import DENOMINATORS, PLACEMENTS, denominator_for

ESTIMATORS = ("count-matched", "mean")
ACTIVATIONS = ("sparse", "dense")


@dataclass(frozen=True)
class CalibrationOptions:
    """What is counted, and what thresholds follow from it.

    placement, denominator: see TopTheta; None leaves each module's own (post-softmax and exact where it has none).
    estimator: "count-matched", so that k keys a row are kept on average, or the paper's "mean", mean + alpha x standard
    deviation over rows of the highest value that exact top-k drops. activations: "sparse", observed modules run exact
    top-k so that deeper ones see what sparse ones give, or "dense". Raises UsageError for values that do not go
    together.
    """

    placement: str | None = None
    estimator: str = "count-matched"
    alpha: float = 0.0
    activations: str = "sparse"
    denominator: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (
            ("placement", PLACEMENTS),
            ("estimator", ESTIMATORS),
            ("activations", ACTIVATIONS),
            ("denominator", DENOMINATORS),
        ):
            value = getattr(self, name)
            if value not in choices and not (value is None and name in ("placement", "denominator")):
                raise UsageError(f"--{name} must be one of {', '.join(choices)}, not {value!r}")
        if not math.isfinite(self.alpha):
            raise UsageError(f"--alpha must be a finite number, not {self.alpha}")
        if self.alpha and self.estimator != "mean":
            raise UsageError(f"--alpha {self.alpha:g} goes with --estimator mean: count-matched has no spread to add")
        if self.denominator and denominator_for(self.placement, self.denominator) != self.denominator:
            raise UsageError(
                f"--denominator {self.denominator} goes with --placement max-relative or pre-softmax: post-softmax "
                "needs the exact or rounded denominator anyway"
            )
