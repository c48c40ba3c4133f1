"""What a recipe saves in an evaluation, as shares of what the dense model has, and which recipes save most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ELEMENTS, SCORES, ACTIVATIONS = "attention elements", "attention scores", "feed-forward activations"
# What results.json calls a kept share -> what it is a share of; attention before feed-forward layers.
SHARES = {"kept_share": ELEMENTS, "cluster_scores_share": SCORES, "activations_kept_share": ACTIVATIONS}
FEED_FORWARD = "feed-forward"

Row = Mapping[str, Any]  # what one module kept, as in results.json


@dataclass(frozen=True)
class Saved:
    """A share in [0, 1], and what it is a share of. Elements are saved by not keeping them, scores by not computing
    them: shares of different things say nothing of each other."""

    share: float
    of: str

    @property
    def is_attention(self) -> bool:
        return not self.of.startswith(ACTIVATIONS)

    def __str__(self) -> str:
        return f"{100 * self.share:.1f} % of {self.of}"


def savings(results: Mapping[str, Any]) -> tuple[Saved, ...]:
    """What an evaluation saved, from its results.json: of attention first, then of feed-forward activations.

    Modules that are dense keep all. Nothing is counted in them, so each is taken to be as large as the mean patched
    module of its kind. The size of a kind without a patched module is not known; the share is then said to be of the
    kinds that have some. Results from before sizes were counted give the share of the patched modules alone.
    """
    kept, kinds, found = results["kept"], results.get("module_kinds"), []
    for key, of in SHARES.items():
        rows = {name: row for name, row in kept["modules"].items() if row.get(key) is not None}
        if kept["total"].get(key) is None:
            continue
        if not rows or kinds is None or any("elements" not in row for row in rows.values()):
            found.append(Saved(1 - float(kept["total"][key]), of))
        else:
            found.append(_of_kinds(rows, key, of, kinds))
    # Of a plan with both, scores are beside the elements, whose share counts clustered modules as dense.
    return tuple(one for place, one in enumerate(found) if not place or not one.is_attention)


def _of_kinds(rows: Mapping[str, Row], key: str, of: str, kinds: Mapping[str, Any]) -> Saved:
    """One share over all modules of the kinds that have a row."""
    saved = whole = 0.0
    alike = {name: kind for name, kind in kinds.items() if name.endswith(FEED_FORWARD) == (of == ACTIVATIONS)}
    known = []
    for name, kind in alike.items():
        members = [rows[module] for module in kind["patched"] if module in rows]
        if members:
            elements = sum(row["elements"] for row in members)
            saved += sum(row["elements"] * (1 - row[key]) for row in members)
            whole += elements * kind["modules"] / len(members)
            known.append(name)
    return Saved(saved / whole, of if len(known) == len(alike) else f"{of} ({', '.join(known)})")


def weighted(modules: Mapping[str, Row], keys: Sequence[str], weights: Mapping[str, float]) -> float:
    """The share of their weight that modules keep, where the weights are known. keys: the first that a module has is
    its kept share; one that has none keeps all."""
    return sum(weight * _share(modules.get(name, {}), keys) for name, weight in weights.items())


def _share(row: Row, keys: Sequence[str]) -> float:
    return float(next((row[key] for key in keys if row.get(key) is not None), 1.0))


def unbeaten(candidates: Sequence[Mapping[str, float]]) -> list[int]:
    """The places of those that no other beats. candidates: what each has of every quantity, the more the better; what
    one does not name it has nothing of. A quantity is compared with itself alone: one candidate beats another if it has
    as much of everything and more of something, or comes first with just the same."""

    def beats(one: int, other: int) -> bool:
        left, right = candidates[one], candidates[other]
        names = left.keys() | right.keys()
        differences = [left.get(name, 0.0) - right.get(name, 0.0) for name in names]
        return min(differences, default=0.0) >= 0 and (max(differences, default=0.0) > 0 or one < other)

    places = range(len(candidates))
    return [place for place in places if not any(beats(other, place) for other in places if other != place)]
