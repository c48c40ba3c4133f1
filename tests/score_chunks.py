"""Synthetic scores as a calibration sees them, and inputs to calibrate tiny models on."""

from __future__ import annotations

from typing import Any

import tiny_models
import torch
from hf_sparsify.calibration.histogram import ScoreHistogram
from hf_sparsify.patcher.methods import Chunk, RowRanges, Visibility
from hf_sparsify.patcher.methods.budget import Budget
from torch import Tensor

HEADS = 3


def chunk(scores: Tensor, visibility: Visibility | None = None) -> Chunk:
    """A chunk of all queries [B, H, q, n]; causal unless a visibility is given."""
    queries, keys = scores.shape[2:]
    visibility = RowRanges.causal(queries, keys) if visibility is None else visibility
    hidden = visibility.hidden(0, queries, 0, keys)
    scores = scores if hidden is None else scores.masked_fill(hidden, -torch.inf)
    return Chunk(scores, visibility.lengths(), visibility, 0, queries, 0, keys)


def random(seed: int, queries: int = 96, batch: int = 1) -> Tensor:
    """Scores whose spread and mean differ by head."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(batch, HEADS, queries, queries, generator=generator)
    return normal * torch.tensor([0.5, 2.0, 30.0]).view(1, -1, 1, 1) + torch.tensor([-1.0, 0.0, 50.0]).view(1, -1, 1, 1)


def observed(budget: Budget, chunks: list[Chunk], placement: str = "pre-softmax", **counting: Any) -> ScoreHistogram:
    histogram = ScoreHistogram(budget, placement, **counting)
    for one in chunks:
        histogram(one)
    return histogram


def same(left: ScoreHistogram, right: ScoreHistogram) -> bool:
    """Whether two have counted exactly the same."""
    mine, theirs = left.parts(), right.parts()
    return (
        left.settings() == right.settings()
        and torch.equal(left.rows, right.rows)
        and all(
            mine[part].keys() == theirs[part].keys()
            and all(torch.equal(counts, theirs[part][bucket]) for bucket, counts in mine[part].items())
            for part in mine
        )
    )


def samples(name: str, seeds: range) -> list[dict[str, Tensor]]:
    """Inputs of a tiny model, one sequence each."""
    made = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        sample = {"input_ids": torch.randint(5, tiny_models.VOCABULARY, (1, 40 + seed % 8), generator=generator)}
        if name in tiny_models.ENCODER_DECODERS:
            sample["decoder_input_ids"] = torch.randint(5, tiny_models.VOCABULARY, (1, 20), generator=generator)
        made.append(sample)
    return made
