"""One results.json or bench.json as a report needs it; whatever is missing there is a DataError."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..evaluation.journal import RESULTS, ended_run
from ..evaluation.saved import SHARES, savings
from ..evaluation.verdict.gate import Verdict
from ..evaluation.verdict.interval import Interval
from ..files import read_file
from ..strict_json import parse_json, shown
from .found import Accuracy, Flip, Kept, Speed, Timed

BENCH = "bench.json"
MOST = 2**26  # bytes of a JSON file
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; DataError if it cannot be read or is anything else."""
    try:
        found = parse_json(read_file(path, MOST))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except DataError as error:
        raise DataError(f"{path} is damaged: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object")
    return found


def read_accuracy(path: Path) -> Accuracy:
    """A results.json; DataError if it was damaged, changed, cut short or written by another version."""
    results = ended_run(path.parent) if path.name == RESULTS else None
    if results is None:
        raise DataError(f"{path} is damaged, unfinished or from another version")
    try:
        return _accuracy(path, results)
    except MALFORMED as error:
        raise DataError(f"{path} is not what eval writes: {error!r}") from None


def read_speed(path: Path) -> Speed:
    """A bench.json; DataError if it is damaged or anything else."""
    results = read_json(path)
    try:
        points = tuple(
            Timed(phase, _tokens(entry), *_ratio(found["ratio"]), _number(found["ceiling"]))
            for entry in results["lengths"]
            for phase, found in entry["phases"].items()
        )
        sentences = tuple(str(sentence) for sentence in results["sentences"])
        str(results["model"])
        described(results)
        str(results["method"])
    except MALFORMED as error:
        raise DataError(f"{path} is not what bench writes: {error!r}") from None
    if not points:
        raise DataError(f"{path} holds no times")
    return Speed(path, points, sentences, results)


def model_of(record: dict[str, Any]) -> tuple[str, str]:
    """The name and the hash of the shape of the model that results are about."""
    base = record["base_model"]
    return Path(str(base["id"])).name, str(base["config_hash"])


def _accuracy(path: Path, results: dict[str, Any]) -> Accuracy:
    key, dataset = results["primary"], results["dataset"]
    interval, dense = results["intervals"][key], float(results["scores"]["dense"][key])
    kl = results["distance"].get("kl")
    described(results)
    return Accuracy(
        path=path,
        data=f"{dataset['name']} ({dataset['split']})" if dataset["split"] else str(dataset["name"]),
        items=int(dataset["items"]),
        metric=str(results["metrics"][key]),
        dense=dense,
        patched=float(results["scores"]["patched"][key]),
        difference=float(interval["difference"]),
        low=float(interval["low"]),
        high=float(interval["high"]),
        budget=_budget(str(results["verdict"]["margin"]), dense),
        verdict=_verdict(results["verdict"]),
        method=str(results["method"]),
        saved=savings(results),
        modules=tuple(_kept(name, row) for name, row in results["kept"]["modules"].items() if _share(row) is not None),
        flips=_flips(results["flips"]),
        same_answer=_number(results["same_answer_share"]),
        divergence=_number(kl["value"]) if kl else None,
        record=results,
    )


def _verdict(verdict: dict[str, Any]) -> Verdict:
    recovery = verdict["recovery"] and Interval(**verdict["recovery"])
    return Verdict(**{**verdict, "difference": Interval(**verdict["difference"]), "recovery": recovery})


def _budget(margin: str, dense: float) -> float:
    """In points, from the margin in words: of points, or of the dense score (evaluation/verdict/gate.py)."""
    number = float(re.findall(r"[0-9][0-9.e-]*", margin)[0])
    return number if margin.endswith("points") else dense * (1 - number / 100)


def _share(row: dict[str, Any]) -> float | None:
    return next((float(row[name]) for name in SHARES if row.get(name) is not None), None)


def _kept(name: str, row: dict[str, Any]) -> Kept:
    heads = row.get("heads") or []
    known = all(isinstance(share, int | float) for share in heads)
    return Kept(name, _share(row) or 0.0, tuple(float(share) for share in heads) if known else ())


def _flips(flips: dict[str, Any] | None) -> tuple[Flip, ...]:
    if flips is None:
        return ()
    found = []
    for direction in ("right_to_wrong", "wrong_to_right"):
        for name in flips[direction]:
            said = flips["answers"][name]
            texts = (str(said.get(part) or "") for part in ("dense", "patched", "question", "passage"))
            found.append(Flip(str(name), direction == "right_to_wrong", tuple(map(str, said["gold"])), *texts))
    return tuple(found)


def number(value: Any) -> float:
    """A JSON number; TypeError for anything else, which a chart would choke on later."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{shown(value)} is no number")
    return float(value)


def described(results: dict[str, Any]) -> None:
    """What every report says of a run has to be there. Raises one of MALFORMED."""
    model_of(results)
    dict(results["versions"]), dict(results["environment"])


def _tokens(entry: dict[str, Any]) -> int:
    tokens = number(entry["tokens"])
    if tokens < 1:
        raise ValueError(f"a text of {tokens:g} tokens")
    return int(tokens)


def _ratio(ratio: dict[str, Any]) -> tuple[float, float, float]:
    return number(ratio["median"]), number(ratio["low"]), number(ratio["high"])


def _number(value: Any) -> float | None:
    return None if value is None else number(value)
