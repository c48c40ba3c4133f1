"""What `sparsify tune` is asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..errors import UsageError, require_at_least_one
from ..evaluation.items import ItemSet
from ..evaluation.saved import ACTIVATIONS
from ..patcher.methods import TopK, TopKFeedForward
from ..patcher.plan import check_selection
from ..tuning.ladder import BOTH, GOALS, RUNGS, UNITS, check_rungs
from .evaluate import EvalOptions
from .evaluate import make_options as make_asking
from .patch import NO_LAYERS, make_feed_forward, make_method

ATTENTION = ("top-k", "top-theta", "none")


@dataclass(frozen=True)
class TuneData:
    """What tuning looks at, and what judges it; no item is in both."""

    tuning: ItemSet
    evaluation: ItemSet


@dataclass(frozen=True)
class TuneOptions:
    """What is tuned, for what, and how it is judged; `sparsify tune --help` explains each.

    UsageError for what is wrong whatever the model and the data are.
    """

    goal: str = "kept"
    keeps: tuple[float, ...] = RUNGS
    samples: int = 16
    calibrate_on: str | None = None
    attention: str = "top-k"
    compensation: str | None = None
    ffn: str = "none"
    layers: str | None = None
    skip_layers: str | None = None
    kind: str | None = None
    stack: str | None = None
    asking: EvalOptions = field(default_factory=EvalOptions)

    def __post_init__(self) -> None:
        require_at_least_one(samples=self.samples)
        if self.goal not in GOALS:
            raise UsageError(f"--goal must be {', '.join(GOALS[:-1])} or {GOALS[-1]}, not {self.goal!r}")
        if self.attention not in ATTENTION:
            raise UsageError(
                f"--attention must be {', '.join(ATTENTION[:-1])} or {ATTENTION[-1]} here, not {self.attention!r}: "
                "only these have a keep rate"
            )
        if self.attention == "none" and self.ffn == "none":
            raise UsageError("--attention none leaves nothing to tune: add --ffn top-k")
        if self.goal == "v-rows" and (self.attention == "none" or self.ffn != "none"):
            raise UsageError("--goal v-rows is about attention alone: leave --ffn out, or tune for kept or latency")
        if self.goal == "latency" and self.attention == "top-theta":
            raise UsageError(
                "--goal latency times top-k, which says nothing of what top-theta takes: use --attention top-k, or "
                "tune for kept or v-rows"
            )
        if self.attention == "none" and self.compensation is not None:
            raise UsageError("--compensation goes with --attention top-k or top-theta")
        check_rungs(self.keeps)
        check_selection(layers=self.layers, skip_layers=self.skipped, kind=self.kind, stack=self.stack)
        self.methods()

    @property
    def unit(self) -> str:
        """What the shares that are kept and saved are of."""
        if self.goal != "kept" or self.ffn == "none":
            return UNITS[self.goal]
        return ACTIVATIONS if self.attention == "none" else BOTH

    @property
    def calibrates(self) -> bool:
        """Whether thresholds are needed."""
        return self.attention == "top-theta"

    @property
    def middle(self) -> float:
        """The keep rate at which they are calibrated."""
        return self.keeps[len(self.keeps) // 2]

    @property
    def skipped(self) -> str | None:
        """As plan_model takes it."""
        return None if self.skip_layers == NO_LAYERS else self.skip_layers

    def methods(self) -> tuple[TopK | None, TopKFeedForward | None]:
        """What is measured: top-k of attention and of feed-forward layers, at any keep rate."""
        attention = None
        if self.attention != "none":
            made = make_method("top-k", keep=0.5, compensation=self.compensation)
            attention = made if isinstance(made, TopK) else None
        return attention, make_feed_forward(self.ffn)


def make_options(
    *,
    goal: str = "kept",
    keep: str | None = None,
    samples: int = 16,
    calibrate_on: str | None = None,
    attention: str = "top-k",
    compensation: str | None = None,
    ffn: str = "none",
    layers: str | None = None,
    skip_layers: str | None = None,
    kind: str | None = None,
    stack: str | None = None,
    **asking: Any,
) -> TuneOptions:
    """The options from what was typed. Raises what TuneOptions, EvalOptions and Gate raise."""
    return TuneOptions(
        goal=goal,
        keeps=_rungs(keep),
        samples=samples,
        calibrate_on=calibrate_on,
        attention=attention,
        compensation=compensation,
        ffn=ffn,
        layers=layers,
        skip_layers=skip_layers,
        kind=kind,
        stack=stack,
        asking=make_asking(**asking),
    )


def _rungs(text: str | None) -> tuple[float, ...]:
    if text is None:
        return RUNGS
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--keep takes fractions such as 0.5,0.25,0.1, not {text!r}") from None
    return check_rungs(numbers)
