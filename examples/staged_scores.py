"""How much of K thresholds need if scores are computed in stages, on a model's own queries and keys: prints tables.

    python examples/staged_scores.py models/SmolLM2-135M-Instruct --calibration squad-calibration.json \\
        --evaluation squad-eval.json --tokens 4096 8128

A first stage reads a part of every key and bounds what the rest can add (Cauchy-Schwarz: |rest of q| |rest of k|). A
key whose bound is below the row's limit is not read further. Rotations are fitted on the passages of --calibration;
the threshold of a row is the score of its k-th key. Shares are of float32 K, means over layers; a KV head reads on what
any of its query heads needs. x is (K + V rows) / (K read + V rows), which bounds the speed-up of a decoding step over a
kernel that reads all of K. The last column: how far off the logarithm of the softmax denominator is where keys that are
not read to the end (post-softmax) count with their last coarse score.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean

import torch
from staged_lab import FIT_QUERIES, Layer, Map, grouped, hide_future, opened, recorded, rotation, score_axes
from torch import Tensor

RULES = ("top-k", "pre-softmax", "max-relative", "post-softmax")

Limit = Callable[[Tensor], Tensor]  # lower bounds of the scores [G, r, n] -> what a kept key reaches at least [G, r, 1]


@dataclass(frozen=True)
class Stage:
    """Coarse scores [G, r, n], how far off they may be, and the floats per key that they add to what is read."""

    scores: Tensor
    slack: Tensor
    floats: float


def mapped(query: Tensor, key: Tensor, fitted: Map, widths: tuple[int, ...]) -> list[Stage]:
    """Stages that read so many mapped dimensions, and the norm of those to come."""
    constant = query @ fitted.mean.mT
    query, key = query @ fitted.to_query, (key - fitted.mean) @ fitted.to_key
    stages, read = [], 0
    for width in widths:
        read += width
        rest = query[..., read:].norm(dim=-1).unsqueeze(2) * key[..., read:].norm(dim=-1).unsqueeze(1)
        stages.append(Stage(query[..., :read] @ key[..., :read].mT + constant, rest, width + 1))
    return stages


def rounded(query: Tensor, key: Tensor) -> list[Stage]:
    """One stage that reads the key in 8 bits, its step and the norm of what rounding changed."""
    step = key.abs().amax(-1, keepdim=True) / 127
    coarse = (key / step).round() * step
    slack = query.norm(dim=-1).unsqueeze(2) * (key - coarse).norm(dim=-1).unsqueeze(1)
    return [Stage(query @ coarse.mT, slack, key.shape[2] / 4 + 2)]


def limits(exact: Tensor, k: int) -> dict[str, Limit]:
    """What top-k and each placement of thresholds know of a row's limit while the scores are only bounded."""
    theta = exact.topk(k).values[..., -1:]
    top, total = exact.amax(-1, keepdim=True), exact.logsumexp(-1, keepdim=True)
    return {
        "top-k": lambda lower: lower.topk(k).values[..., -1:],
        "pre-softmax": lambda lower: theta,
        "max-relative": lambda lower: theta - top + lower.amax(-1, keepdim=True),
        "post-softmax": lambda lower: theta - total + lower.logsumexp(-1, keepdim=True),
    }


def read(
    stages: list[Stage], last: float, exact: Tensor, shared: int, limit: Limit
) -> tuple[float, list[float], Tensor]:
    """Floats read per key, `last` of them to finish it; the shares of keys left after each stage; which are left.

    shared: rows of so many heads, one after the other, read a key if any of them does.
    """
    visible = exact > -torch.inf
    floats, shares, left, lower = 0.0, [1.0], visible, torch.full_like(exact, -torch.inf)
    for stage in stages:
        floats += stage.floats * shares[-1]
        lower = torch.where(left, stage.scores - stage.slack, lower)
        left = any_of(left & (stage.scores + stage.slack >= limit(lower)), shared)
        shares.append(float(left.sum() / visible.sum()))
    return floats + last * shares[-1], shares[1:], left


def any_of(left: Tensor, shared: int) -> Tensor:
    groups, rows, keys = left.shape
    return (
        left.view(groups, shared, rows // shared, keys).any(1, keepdim=True).expand(-1, shared, -1, -1).reshape_as(left)
    )


def layouts(query: Tensor, key: Tensor, fits: dict[str, Map]) -> dict[str, tuple[list[Stage], int]]:
    """Stages, and the floats per key that finish it."""
    width = key.shape[2]
    found = {f"8 bits, then all {width}": (rounded(query, key), width)}
    for name, fitted in fits.items():
        for widths in ((width // 2,), (width // 4, width // 4)):
            found[f"{name}, {'+'.join(map(str, widths))}+{width // 2}"] = (
                mapped(query, key, fitted, widths),
                width // 2,
            )
    return found


def measure(layer: Layer, fits: dict[str, Map], k: int) -> dict[str, list[float]]:
    """The figures of a row of the table for each layout, with the share of V rows in front."""
    query, key = grouped(layer), layer[1]
    shared, width = layer[0].shape[0] // key.shape[0], key.shape[2]
    exact = hide_future(query @ key.mT, layer[0].shape[1])
    theta = exact.topk(k).values[..., -1:]
    values = float(any_of(exact >= theta, shared).sum() / (exact > -torch.inf).sum())
    found = {}
    for label, (stages, last) in layouts(query, key, fits).items():
        limit_of = limits(exact, k)
        alone, shares, _ = read(stages, last, exact, 1, limit_of["pre-softmax"])
        figures = [values, shares[0], shares[-1], alone / width]
        for rule in RULES:
            together, _, left = read(stages, last, exact, shared, limit_of[rule])
            figures.append(together / width)
        known = torch.where(left, exact, stages[-1].scores).masked_fill(exact == -torch.inf, -torch.inf)
        off = (known.logsumexp(-1) - exact.logsumexp(-1)).abs()
        found[label] = [*figures, float(off.mean()), float(off.quantile(0.99))]
    return found


def main() -> None:
    args, loaded = opened(__doc__)
    for tokens in args.tokens:
        fits = [
            {"rotation": rotation(layer[1]), "score axes": score_axes(grouped(layer), layer[1])}
            for layer in recorded(loaded, args.calibration, tokens, FIT_QUERIES)
        ]
        layers = recorded(loaded, args.evaluation, tokens, args.queries)
        found = [measure(layer, fit, args.k) for layer, fit in zip(layers, fits, strict=True)]
        print_table(tokens, args.k, found)


def print_table(tokens: int, k: int, found: list[dict[str, list[float]]]) -> None:
    print(f"\n{tokens} tokens, k = {k}: V rows {mean(next(iter(f.values()))[0] for f in found):.1%}\n")
    rules = "".join(f" {rule}: K per KV head, x |" for rule in RULES)
    print(f"| stages | keys left after first, last | K per head |{rules} log denominator off: mean, p99 |")
    print("|---" * (4 + len(RULES)) + "|")
    for label in found[0]:
        values, first, last, alone, *shares, off, most = (mean(x) for x in zip(*(f[label] for f in found), strict=True))
        cells = "".join(f" {share:.1%}, {(1 + values) / (share + values):.2f} |" for share in shares)
        print(f"| {label} | {first:.1%}, {last:.1%} | {alone:.1%} |{cells} {off:.4f}, {most:.4f} |", flush=True)


if __name__ == "__main__":
    main()
