"""What `sparsify sweep` prints."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from ..evaluation.report import STYLES
from ..evaluation.saved import Saved
from ..evaluation.verdict.gate import NOT_TESTED, PASS
from ..tables import grid, percent, titled
from .document import DONE, FAILED, REFUSED, Document, Entry

P = "p: one-sided, of a loss beyond what is allowed; PASS needs {} or less, and every denser cell of its chain to pass"
CONTROL = "a cell that keeps all is the dense model itself, as a control: only more items can make it pass"


def sweep_report(document: Document, directory: Path) -> RenderableType:
    """The cells side by side, what stopped each chain, what went wrong, the recommended cell, and what to do next."""
    done = [(entry, _read(directory / entry["results"])) for entry in document["cells"] if entry["status"] == DONE]
    parts: list[RenderableType] = []
    if done:
        times = {entry["name"]: _read(directory / entry["bench"]) for entry, _ in done if entry["bench"]}
        parts += [_table(document, done, times), ""]
        parts += [*_stops(document), ""]
    parts += _problems(document)
    parts.append(Text(_recommended(document, directory)))
    parts.append(f"next: sparsify report {shlex.quote(str(directory))}")
    return Group(*parts)


def _read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


def _table(document: Document, done: list[tuple[Entry, dict[str, Any]]], times: dict[str, Any]) -> RenderableType:
    first = done[0][1]
    short = first["metrics"][first["primary"]]
    settings = [entry["setting"] for entry, _ in done]
    activations = any(setting["ffn_keep"] is not None or setting.get("ffn_k") is not None for setting in settings)
    kl = any(results["distance"].get("kl") for _, results in done)
    phases = list(next(iter(times.values()))["lengths"][-1]["phases"]) if times else []
    header = ["cell", "verdict", "dense", "patched", "difference", "95 % interval", "p", "kept"]
    header += [*(["activations"] if activations else []), "same answer", *(["KL"] if kl else [])]
    header += [f"{phase}, x" for phase in phases]
    rows = []
    for entry, results in done:
        row = [entry["label"], *_scores(entry, results), *_kept(entry, activations)]
        row.append(percent(results["same_answer_share"]))
        if kl:
            row.append(f"{found['value']:.4f}" if (found := results["distance"].get("kl")) else "-")
        rows.append([*row, *(_ratio(times.get(entry["name"]), phase) for phase in phases)])
    data, length = document["dataset"], _length(times)
    source = f"{data['name']} ({data['split']})" if data["split"] else data["name"]
    title = f"{len(done)} cells on {first['dataset']['items']} items of {source}: {short}, {document['gate']['margin']}"
    speed = f"; dense / patched at {length:,} tokens" if length else ""
    return titled(title + speed, grid(header, rows, text_columns=2))


def _scores(entry: Entry, results: dict[str, Any]) -> list[str]:
    key = results["primary"]
    scores, interval = results["scores"], results["intervals"][key]
    return [
        entry["verdict"]["decision"],
        *(f"{scores[arm][key]:.1f}" for arm in ("dense", "patched")),
        f"{interval['difference']:+.1f}",
        f"{interval['low']:+.1f} to {interval['high']:+.1f}",
        f"{entry['verdict']['p']:.2g}",
    ]


def _kept(entry: Entry, activations: bool) -> list[str]:
    """The share of attention that was kept or computed, and of activations where any cell has that."""
    saved = [Saved(**one) for one in (entry["saved"], entry["also_saved"]) if one is not None]
    shares = {one.is_attention: 1 - one.share for one in saved}
    return [percent(shares.get(True)), *([percent(shares.get(False))] if activations else [])]


def _length(times: dict[str, Any]) -> int | None:
    return next((found["lengths"][-1]["tokens"] for found in times.values()), None)


def _ratio(times: dict[str, Any] | None, phase: str) -> str:
    found = times and times["lengths"][-1]["phases"].get(phase)
    return f"{found['ratio']['median']:.2f}" if found else "-"


def _stops(document: Document) -> Iterator[RenderableType]:
    """Why each chain ended where it did, and what p is held against."""
    entries = {entry["name"]: entry for entry in document["cells"]}
    for chain in document["chains"]:
        for name in chain["cells"]:
            verdict = entries[name]["verdict"]
            if verdict and verdict["decision"] not in (PASS, NOT_TESTED):
                decided = (verdict["decision"], f"bold {STYLES[verdict['decision']]}")
                yield Text.assemble(f"{entries[name]['label']}: ", decided, f": {verdict['reason']}")
                if entries[name]["dense"]:
                    yield CONTROL
    level = document["chains"][0]["level"]
    yield P.format(f"{level:.3g}")


def _problems(document: Document) -> list[RenderableType]:
    """A sentence for each cell that could not be planned or run, and for times that are missing."""
    said: dict[str, list[str]] = {}
    for entry in document["cells"]:
        if entry["status"] in (REFUSED, FAILED):
            said.setdefault(f"{entry['status']}: {entry['error']}", []).append(entry["label"])
        elif entry["bench_error"]:
            said.setdefault(f"not timed: {entry['bench_error']}", []).append(entry["label"])
    lines = [Text(f"{'; '.join(labels)}: {what}", style="yellow") for what, labels in said.items()]
    return [*lines, ""] if lines else []


def _recommended(document: Document, directory: Path) -> str:
    found = document["recommended"]
    if found is None:
        return "recommended: none, no sparse cell passes"
    names = [found["cell"], *found["others"]]
    places = [str(directory / entry["directory"]) for entry in document["cells"] if entry["name"] in names]
    return f"recommended: {found['reason']} ({'; '.join(places)})"
