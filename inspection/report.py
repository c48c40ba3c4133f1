"""What `sparsify inspect` prints."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..benchmark.workload import DECODE
from ..tables import grid, percent, titled

Facts = dict[str, Any]


def inspection_report(results: dict[str, Any], every_module: bool = False) -> RenderableType:
    """The modules, by groups of equal ones unless every_module; what cannot be patched; where the work is."""
    parts: list[RenderableType] = [_title(results), ""]
    for name, title, row, header, text in (
        ("attention", "Attention", _attention_row, ATTENTION, 5),
        ("feed_forward", "Feed-forward layers, by their down-projections", _layer_row, FEED_FORWARD, 3),
    ):
        if results[name]:
            parts += [titled(title, _modules(results, name, row, header, text, every_module)), ""]
    for reason in results["not_patchable"]:
        parts += [Text(reason, style="yellow"), ""]
    for note in _notes(results):
        parts += [note, ""]
    if results["lengths"]:
        parts += [_work(results), ""]
        if DECODE in results["lengths"][0]["phases"]:
            parts += [_reads(results), ""]
        parts += results["sentences"]
    return Group(*parts)


def _title(results: Facts) -> str:
    base = results["base_model"]
    size = [f"{_scaled(results['parameters'])} parameters", results["dtype"]]
    if results["positions"] is not None:
        size.append(f"{results['positions']:,} positions")
    return f"{results['model']}: {base['model_type']}, {base['task']}, {results['class']}; {', '.join(size)}"


MANY = 8  # layers to be listed one by one
PARTS = ("attention", "down-projections")
ATTENTION = ("modules", "kind", "sees", "scores", "methods", "number", "heads", "KV heads", "head size")
FEED_FORWARD = ("modules", "form", "methods", "number", "d_ff")


def _attention_row(found: Facts) -> list[str]:
    sees = ["causal" if found["causal"] else "all keys", f"window {found['window']:,}" if found["window"] else ""]
    extras = [
        found["position_bias"] or "",
        f"soft cap {found['soft_cap']:g}" if found["soft_cap"] else "",
        "sinks" if found["sinks"] else "",
    ]
    sizes = ["-" if found[name] is None else str(found[name]) for name in ("heads", "kv_heads", "head_size")]
    words = [", ".join(filter(None, sees)), ", ".join(filter(None, extras)) or "-"]
    return [f"{found['stack']} {found['kind']}", *words, _methods(found), *sizes]


def _layer_row(found: Facts) -> list[str]:
    form = " ".join(filter(None, [found["activation"], "gated" if found["gated"] else ""]))
    return [form or "-", _methods(found), "-" if found["d_ff"] is None else f"{found['d_ff']:,}"]


def _methods(found: Facts) -> str:
    """What a module takes, or with a recipe what it gets."""
    if "planned" in found:
        return found["planned"] or "left dense"
    return ", ".join(found["methods"])


def _modules(
    results: Facts, part: str, row: Callable[[Facts], list[str]], header: tuple[str, ...], text: int, each: bool
) -> Table:
    """Modules whose names differ in their layer alone and that are otherwise equal share a row."""
    groups: dict[tuple[str, ...], list[Facts]] = {}
    for found in results[part]:
        pattern = found["name"] if each else re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "{}", found["name"], count=1)
        groups.setdefault((pattern, *row(found)), []).append(found)
    rows = []
    for (pattern, *cells), members in groups.items():
        name = pattern.replace("{}", _layers([found["layer"] for found in members]))
        rows.append([name, *cells[: text - 1], str(len(members)), *cells[text - 1 :]])
    named = ["recipe" if "planned" in results[part][0] and column == "methods" else column for column in header]
    return grid(named, rows, text_columns=text)


def _layers(numbers: list[int]) -> str:
    """[0, 1, 2] -> "0-2"; [0, 2, 4, 6, 8] -> "0,2..8"; others in full if they are few."""
    steps = {after - before for before, after in pairwise(numbers)}
    if steps == {1}:
        return f"{numbers[0]}-{numbers[-1]}"
    if len(steps) == 1 and len(numbers) > 3:
        return f"{numbers[0]},{numbers[1]}..{numbers[-1]}"
    if len(numbers) > MANY:
        return f"{numbers[0]},{numbers[1]},{numbers[2]}..{numbers[-1]}"
    return ",".join(map(str, numbers))


def _notes(results: Facts) -> list[str]:
    notes = []
    if not results["loaded_by_commands"]:
        notes.append(f"the commands load no {results['class']}: patch it from Python (hf_sparsify.patch)")
    if results["quantized"]:
        notes.append(f"its weights are quantised; bytes are counted as {results['dtype']}")
    if results["interception"] is not None:
        notes.append(results["interception"]["note"])
    if results["not_counted"]:
        notes.append(results["not_counted"])
    return notes


def _work(results: Facts) -> RenderableType:
    """What is read at once; a new token has a table of its own."""
    rows = []
    for entry in results["lengths"]:
        phase, found = next(iter(entry["phases"].items()))
        shares = _shares(found["shares"], results)
        rows.append([phase + _beyond(entry, results), _tokens(entry), _scaled(found["flops"]), *shares, _most(found)])
    title = "Work of one sequence"
    if results["base_model"]["task"] == "seq2seq-lm":
        title += ", read by the encoder, and of the first token written"
    elif any(found["causal"] for found in results["attention"]):
        title += "; in causal attention a row's work is the keys that it sees"
    return titled(title, grid(["phase", "tokens", "FLOPs", *PARTS, "at most"], rows))


def _reads(results: Facts) -> RenderableType:
    rows = []
    for entry in results["lengths"]:
        found = entry["phases"][DECODE]
        sizes = [f"{found[name] / 2**20:,.1f}" for name in ("weight_bytes", "cache_bytes")]
        shares = _shares(found["shares_read"], results)
        rows.append([DECODE + _beyond(entry, results), _tokens(entry), *sizes, *shares, _most(found)])
    header = ["phase", "tokens", "weights", "KV cache", *PARTS, "at most"]
    return titled(f"What one new token reads, MiB of {results['dtype']}", grid(header, rows))


def _shares(found: Facts, results: Facts) -> list[str]:
    return [percent(found["attention"]), percent(found["feed_forward"] if results["feed_forward"] else None)]


def _tokens(entry: Facts) -> str:
    return f"{entry['tokens']:,}"


def _beyond(entry: Facts, results: Facts) -> str:
    return f", beyond its {results['positions']:,} positions" if entry["beyond_positions"] else ""


def _most(found: Facts) -> str:
    return f"{found['ceiling']:.2f}x" if found["shares"]["patched"] and found["ceiling"] else "-"


def _scaled(number: float) -> str:
    """12345678 -> "12.3 M"."""
    for unit in ("", " k", " M", " G", " T", " P"):
        if number < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} E"
