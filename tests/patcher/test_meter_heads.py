"""Kept shares of each query head, counted by hand and by the meter."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hf_sparsify.patcher.meter import Meter, ModuleMeter
from hf_sparsify.patcher.methods import FullMask, RowCounts, attend_rows
from hf_sparsify.patcher.methods.chunk import Selection
from tiny_models import attention_inputs
from torch import Tensor

K = 2
KEYS = 6


def selected(groups: int, queries: int = 5) -> tuple[Tensor, Tensor, RowCounts]:
    """What four heads on `groups` KV heads see and keep, bool [2, 4, q, 6]; the first sequence is left-padded by 2."""
    generator = torch.Generator().manual_seed(3)
    visible = torch.ones(2, 1, queries, KEYS, dtype=torch.bool).tril(KEYS - queries)
    visible[0, :, :, :2] = False
    shares = torch.tensor([0.2, 0.4, 0.6, 0.8]).view(1, 4, 1, 1)
    keep = visible & (torch.rand(2, 4, queries, KEYS, generator=generator) < shares)
    call = attention_inputs("all", heads=4, groups=groups, queries=queries, keys=KEYS)
    _, counts = attend_rows(replace(call, visibility=FullMask(visible)), lambda chunk: Selection(keep), count=True)
    assert counts is not None
    return visible, keep, counts


def by_hand(visible: Tensor, keep: Tensor, counted: Tensor | None) -> list[float]:
    shares = []
    for head in range(4):
        seen = kept = 0
        for b in range(2):
            for row in range(keep.shape[2]):
                length = int(visible[b, 0, row].sum())
                if length > K and (counted is None or bool(counted[b, row])):
                    seen += length
                    kept += int(keep[b, head, row].sum())
        shares.append(kept / seen)
    return shares


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("padded", [False, True])
def test_kept_share_of_every_query_head_over_its_long_rows(groups: int, padded: bool) -> None:
    visible, keep, counts = selected(groups)
    counted = torch.tensor([[False, False, True, True, True], [True] * 5]) if padded else None
    meter = Meter()
    meter.add("m", counts, visible.sum(-1), torch.full((1, 1, 5), K), counted)
    heads = meter.summary()["modules"]["m"]["heads"]
    assert heads == pytest.approx(by_hand(visible, keep, counted))
    assert sorted(heads) == heads
    assert len(set(heads)) == 4


def test_heads_add_up_over_calls_processes_and_json() -> None:
    visible, keep, counts = selected(2)
    lengths, rows_k = visible.sum(-1), torch.full((1, 1, 5), K)
    first, second = Meter(), Meter()
    first.add("m", counts, lengths, rows_k, torch.tensor([[True] * 5, [False] * 5]))
    second.add("m", counts, lengths, rows_k, torch.tensor([[False] * 5, [True] * 5]))
    first.merge(Meter.from_dict(json.loads(json.dumps(second.to_dict()))))
    assert first.modules["m"].heads == pytest.approx(by_hand(visible, keep, None))


def test_total_has_no_heads_and_leaves_those_of_the_modules() -> None:
    visible, _, counts = selected(2)
    meter = Meter()
    for name in ("a", "b"):
        meter.add(name, counts, visible.sum(-1), torch.full((1, 1, 5), K), None)
    assert meter.total().heads is None
    assert "heads" not in meter.summary()["total"]
    assert meter.modules["a"].heads is not None


def test_counts_of_a_journal_without_heads_are_read_and_give_none() -> None:
    visible, _, counts = selected(2)
    meter = Meter()
    meter.add("m", counts, visible.sum(-1), torch.full((1, 1, 5), K), None)
    old = {name: value for name, value in meter.modules["m"].to_dict().items() if not name.startswith("head_")}
    before = ModuleMeter.from_dict(old)
    assert before.heads is None
    assert before.summary() == meter.modules["m"].summary()
    before.merge(meter.modules["m"])  # the batches of a run that a newer version went on with
    assert before.heads is None


def test_modules_without_long_rows_have_no_heads() -> None:
    visible, _, counts = selected(2)
    meter = Meter()
    meter.add("m", counts, visible.sum(-1), torch.full((1, 1, 5), KEYS), None)
    assert meter.summary()["modules"]["m"]["heads"] is None
