"""From an evaluation to what is saved: results.json and the final predictions.jsonl."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from .run import Evaluation
from .tasks.base import ARMS, TOO_LONG, Record, Task
from .verdict.flips import Flips
from .verdict.gate import Gate, Verdict, decide, holm
from .verdict.interval import Interval, interval

# An answer whose best token, choice or label is ahead of the second by less than this (in nats or logits) may change
# with the batch size, because a sum in another order is another number in its last digits.
NEAR_TIE = 1e-4
Correction = Callable[[list[Verdict]], list[Verdict]]
# So many flipped answers of each direction come with question and passage, cut at so many characters.
FLIPS_WITH_TEXT, TEXT_CHARACTERS = 100, 4000


def judge(evaluations: Sequence[Evaluation], gate: Gate, seed: int, correct: Correction | None = None) -> list[Verdict]:
    """The verdict on each evaluation's primary metric. correct: for several; by default Holm's correction."""
    verdicts = []
    for evaluation in evaluations:
        task, records = evaluation.task, evaluation.records
        dense, patched = (_scores(records, task, arm, task.primary) for arm in ARMS)
        chance = task.chance([record.item for record in records])
        support = task.support(task.primary)
        verdicts.append(decide(dense, patched, groups_of(records), gate, support=support, chance=chance, seed=seed))
    if correct is not None:
        return correct(verdicts)
    return holm(verdicts) if len(verdicts) > 1 else verdicts


def summarize(evaluation: Evaluation, verdict: Verdict, seed: int) -> dict[str, Any]:
    """Scores in percent for both arms, their difference with its interval, and what was kept, ready for JSON."""
    records, task, journal = evaluation.records, evaluation.task, evaluation.journal
    items = task.items
    groups = groups_of(records)
    return {
        "task": task.name,
        "dataset": {
            **items.describe(),
            "items": len(records),
            "groups": len(set(groups)),
            "left_out_too_long": evaluation.left_out.get(TOO_LONG, 0),
            "left_out_otherwise": {why: count for why, count in evaluation.left_out.items() if why != TOO_LONG},
        },
        "prompt": {"style": task.style, "first": evaluation.first_input},
        "batch_size": task.batch_size,
        "max_new_tokens": task.max_new_tokens,
        "metrics": task.metrics,
        "primary": task.primary,
        "verdict": verdict.to_dict(),
        "scores": totals(records, task),
        "intervals": _intervals(records, task, groups, seed),
        "error_rates": _error_rates(records, task, groups, seed),
        "by_kind": _by_kind(records, task),
        "flips": _flips(records, task, groups),
        "same_answer_share": _mean([float(r.same_answer) for r in records if r.same_answer is not None]),
        "distance": _distance(records, task, groups, seed),
        "near_ties": _near_ties(records),
        "dense_from_cache": journal.cached,
        "processes": {
            "count": len(journal.work),
            "items": {str(rank): count for rank, count in sorted(journal.work.items())},
        },
        "seconds": journal.seconds,
        "kept": journal.ended["kept"] if journal.ended else journal.meter.summary(),
    }


def totals(records: Sequence[Record], task: Task) -> dict[str, dict[str, float]]:
    """{"dense": {metric: percent}, "patched": ..., "difference": patched - dense} for the task's metrics."""
    dense, patched = (task.totals(records, arm) for arm in ARMS)
    return {"dense": dense, "patched": patched, "difference": {name: patched[name] - dense[name] for name in dense}}


def prediction_lines(evaluation: Evaluation) -> list[dict[str, Any]]:
    """The final predictions.jsonl, in the order of the items; no working data, nothing that a rerun would change."""
    return [_line(record, evaluation.task) for record in evaluation.records]


def groups_of(records: Sequence[Record]) -> list[str]:
    """For each record what its item has in common with others, such as the passage."""
    return [record.item.group for record in records]


def _line(record: Record, task: Task) -> dict[str, Any]:
    item = record.item
    asked = {name: getattr(item, name) for name in ("question", "texts") if hasattr(item, name)}
    answers = {
        arm: {name: value for name, value in record.answer(arm).items() if not name.startswith("_")}
        | task.score(record, arm)
        for arm in ARMS
    }
    return {
        "id": item.id,
        "input_sha256": record.input_hash,
        "tokens": record.tokens,
        **({"kind": item.kind} if item.kind else {}),
        **asked,
        "gold": task.gold(item),
        **answers,
        "same_answer": record.same_answer,
        "distance": record.distance,
    }


def _scores(records: Sequence[Record], task: Task, arm: str, metric: str) -> list[float]:
    return [task.score(record, arm)[metric] for record in records]


def _intervals(records: Sequence[Record], task: Task, groups: Sequence[str], seed: int) -> dict[str, Any]:
    """For each metric the interval of patched - dense, in points."""
    found = {}
    for metric in task.metrics:
        dense, patched = (_scores(records, task, arm, metric) for arm in ARMS)
        points = [100 * (after - before) for before, after in zip(dense, patched, strict=True)]
        made = interval(points, groups, support=task.support(metric), seed=seed)
        found[metric] = {"difference": made.value, "low": made.low, "high": made.high}
    return found


def _error_rates(records: Sequence[Record], task: Task, groups: Sequence[str], seed: int) -> dict[str, Any]:
    """Errors per hundred units over all items together, for both arms, and patched - dense with its interval."""
    counted = {arm: [task.errors(record, arm) for record in records] for arm in ARMS}
    rates = {}
    for name in task.errors(records[0], ARMS[0]):
        wrong = {arm: [errors[name][0] for errors in of_arm] for arm, of_arm in counted.items()}
        units = [float(errors[name][1]) for errors in counted["dense"]]
        more = [
            100 * (after - before) / count
            for before, after, count in zip(wrong["dense"], wrong["patched"], units, strict=True)
        ]
        made = _per_token(more, units, groups, seed)
        rates[name] = {
            **{arm: 100 * sum(of_arm) / sum(units) for arm, of_arm in wrong.items()},
            "difference": made.value,
            "low": made.low,
            "high": made.high,
            "units": int(sum(units)),
        }
    return rates


def _flips(records: Sequence[Record], task: Task, groups: Sequence[str]) -> dict[str, Any] | None:
    """Which right answers went wrong and the other way round; None for tasks without right and wrong."""
    if task.right is None:
        return None
    dense, patched = ([score > 0.5 for score in _scores(records, task, arm, task.right)] for arm in ARMS)
    flips = Flips.between([record.item.id for record in records], dense, patched, groups)
    return {"metric": task.right, **flips.to_dict(), "answers": _flipped_answers(records, task, flips)}


def _flipped_answers(records: Sequence[Record], task: Task, flips: Flips) -> dict[str, Any]:
    """Gold and given answers of the items that flipped, by id; of the first ones also what was asked."""
    flipped = {*flips.right_to_wrong, *flips.wrong_to_right}
    told = {*flips.right_to_wrong[:FLIPS_WITH_TEXT], *flips.wrong_to_right[:FLIPS_WITH_TEXT]}
    return {
        record.item.id: {
            "gold": task.gold(record.item),
            **{arm: record.answer(arm).get("answer") for arm in ARMS},
            **(_asked(record.item) if record.item.id in told else {}),
        }
        for record in records
        if record.item.id in flipped
    }


def _asked(item: Any) -> dict[str, str]:
    """Question and passage of an item that has them, without the distractors around the passage, each cut if long."""
    texts = {
        "question": getattr(item, "question", ""),
        "passage": getattr(item, "passage", "") or getattr(item, "context", ""),
    }
    return {
        name: text if len(text) <= TEXT_CHARACTERS else f"{text[:TEXT_CHARACTERS]} ..."
        for name, text in texts.items()
        if text
    }


def _by_kind(records: Sequence[Record], task: Task) -> dict[str, Any]:
    kinds: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.item.kind:
            kinds[record.item.kind].append(record)
    return {kind: {"items": len(members), **totals(members, task)} for kind, members in sorted(kinds.items())}


def _distance(records: Sequence[Record], task: Task, groups: Sequence[str], seed: int) -> dict[str, Any]:
    """How far patched is from dense, whatever the labels: what the task has of it."""
    distances = [record.distance for record in records]
    found: dict[str, Any] = {}
    tokens = [float(distance.get("tokens", 1)) for distance in distances]
    if task.kl_unit is not None:
        made = _per_token([distance["kl"] for distance in distances], tokens, groups, seed)
        found["kl"] = {"value": made.value, "low": made.low, "high": made.high, "unit": task.kl_unit}
    for name in ("question_cosine", "passage_cosine"):
        if distances and name in distances[0]:
            found[name] = _mean([distance[name] for distance in distances])
    if distances and "nll" in distances[0]:
        found["perplexity"] = _perplexity(distances, groups, tokens, seed)
    return found


def _perplexity(distances: Sequence[dict[str, Any]], groups: Sequence[str], tokens: list[float], seed: int) -> Any:
    """Of each arm over all tokens, and patched / dense with its interval."""
    nll = {arm: [distance["nll"][arm] for distance in distances] for arm in ARMS}
    worse = [after - before for before, after in zip(nll["dense"], nll["patched"], strict=True)]
    made = _per_token(worse, tokens, groups, seed)
    of_arm = {arm: math.exp(_weighted(values, tokens)) for arm, values in nll.items()}
    return {**of_arm, "ratio": math.exp(made.value), "low": math.exp(made.low), "high": math.exp(made.high)}


def _per_token(values: Sequence[float], tokens: Sequence[float], groups: Sequence[str], seed: int) -> Interval:
    """The mean over tokens of values that are means over the tokens of each record."""
    shares = [count / max(tokens) for count in tokens]
    sums = [value * share for value, share in zip(values, shares, strict=True)]
    return interval(sums, groups, support=None, per=shares, seed=seed)


def _weighted(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _near_ties(records: Sequence[Record]) -> dict[str, Any]:
    """Answers that another batch size may change: how many of each arm."""
    counts = {arm: sum(record.answer(arm).get("margin", 1.0) < NEAR_TIE for record in records) for arm in ARMS}
    return {"below": NEAR_TIE, **counts}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
