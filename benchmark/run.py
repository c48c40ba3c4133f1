"""The measurement itself: contenders in turn, on the same tokens, length after length."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from ..patcher.binding.loading import LoadedModel
from ..patcher.meter import Meter
from ..patcher.methods import TopKFeedForward
from ..patcher.outputs import finite_outputs
from ..patcher.recipe import Plan, Recipe
from .arms import DENSE, EAGER, PATCHED, Arms
from .break_even import break_even, sentence
from .memory import eager_bytes, free_bytes
from .shares import Shares, shares_of
from .timing import Spread, order, ratios
from .workload import Workload, workload

# Eager attention that is this much slower and takes seconds is timed once.
SLOW, SECONDS = 2.0, 10.0
# The share of the free memory that eager attention may fill.
MEMORY_SHARE = 0.7
# What is left of the dense model's attention elements, scores (in clustered attention) and activations.
KEPT = ("kept_share", "cluster_scores_share", "activations_kept_share")


@dataclass
class LengthResult:
    """Of one length. seconds: arm -> phase -> one time for each round. calls: of patched modules, by the way they took.
    kept: the shares in KEPT, None for what the plan has not. left_out: arms that were not run, and why. load: processes
    that wanted to run before it began, on average over a minute. peak_memory: arm -> bytes above the loaded model."""

    work: Workload
    seconds: dict[str, dict[str, list[float]]]
    calls: dict[str, int]
    kept: dict[str, float | None]
    shares: dict[str, Shares]
    left_out: dict[str, str]
    load: float
    peak_memory: dict[str, int | None] = field(default_factory=dict)


def measure(
    loaded: LoadedModel,
    arms: Arms,
    tokens: Tensor,
    new_tokens: int,
    repeats: int,
    planned: set[str],
    advance: Callable[[int], None],
) -> LengthResult:
    """Times all contenders on tokens [B, n]. planned: the patched modules. advance is called with 1 for every pass of
    `repeats` rounds. SparsifyError for a model that says NaN."""
    work = workload(loaded.model, loaded.base.task, tokens, new_tokens)
    names, left_out = list(arms.names), {}
    needed, free = eager_bytes(loaded.model, *tokens.shape), free_bytes(work.tokens.device)
    if EAGER in names and free is not None and needed > MEMORY_SHARE * free:
        names.remove(EAGER)
        left_out[EAGER] = f"its scores take about {needed / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free"
        advance(repeats)
    load = os.getloadavg()[0]
    with finite_outputs(arms.model):
        work.warm_up()
    arms.clear_calls()
    seconds = _rounds(work, arms, names, repeats, advance)
    calls = dict(arms.calls())
    with arms.use(PATCHED), arms.patch.metered(Meter()) as meter:
        work.run()
    total = meter.total().summary()
    kept = {name: total[name] for name in KEPT}
    return LengthResult(work, seconds, calls, kept, shares_of(work, planned), left_out, load)


def _rounds(
    work: Workload, arms: Arms, names: list[str], repeats: int, advance: Callable[[int], None]
) -> dict[str, dict[str, list[float]]]:
    """Seconds: contender -> phase -> one time for each round."""
    seconds: dict[str, dict[str, list[float]]] = {name: {phase: [] for phase in work.phases} for name in names}
    for index in range(repeats):
        spent = {}
        for name in order(names, index):
            with arms.use(name):
                work.warm_up()
                found = work.run()
            spent[name] = sum(found.values())
            for phase, time in found.items():
                seconds[name][phase].append(time)
            advance(1)
        if EAGER in names and spent[EAGER] > max(SECONDS, SLOW * spent[DENSE]):
            names = [name for name in names if name != EAGER]
            advance(repeats - 1 - index)
    return seconds


def with_min_length(recipe: Recipe, length: int) -> Recipe:
    """The recipe whose attention stays dense below a length; feed-forward layers as they are."""

    def changed(plan: Plan) -> Plan:
        return {
            name: method if isinstance(method, TopKFeedForward) else replace(method, min_length=length)
            for name, method in plan.items()
        }

    before = recipe.before_calibration
    return replace(recipe, plan=changed(recipe.plan), before_calibration=before and changed(before))


def summary(results: Sequence[LengthResult]) -> dict[str, Any]:
    """What was measured as plain data: per length and phase, break-evens, and a sentence for each phase."""
    lengths = [_length(result) for result in results]
    tokens = [entry["tokens"] for entry in lengths]
    evens, sentences = {}, []
    for phase in lengths[-1]["phases"]:
        of_phase = [entry["phases"][phase] for entry in lengths]
        evens[phase] = break_even(tokens, [one["ratio"]["median"] for one in of_phase])
        last = of_phase[-1]
        ratio = Spread(**last["ratio"])
        sentences.append(sentence(phase, tokens[-1], ratio, tokens, evens[phase], last["ceiling"]))
    return {"lengths": lengths, "break_even": evens, "sentences": sentences}


def _length(result: LengthResult) -> dict[str, Any]:
    work = result.work
    batch, tokens = work.tokens.shape
    phases = {}
    for phase in work.phases:
        seconds = {arm: times[phase] for arm, times in result.seconds.items()}
        spreads = {arm: asdict(Spread.of(times)) for arm, times in seconds.items()}
        shares = result.shares[phase]
        phases[phase] = {
            "tokens": work.passes(phase),
            "seconds": {arm: {**spread, "runs": seconds[arm]} for arm, spread in spreads.items()},
            "tokens_per_second": {
                arm: batch * work.passes(phase) / spread["median"] for arm, spread in spreads.items()
            },
            "ratio": asdict(ratios(seconds[DENSE], seconds[PATCHED])),
            "shares": asdict(shares),
            "ceiling": shares.ceiling,
        }
    return {
        "tokens": tokens,
        "phases": phases,
        **result.kept,
        "calls": result.calls,
        "left_out": result.left_out,
        "load_average": result.load,
        "peak_memory": result.peak_memory,
    }
