"""The batch size changes no prediction of the trained demo models, dense or patched, and no count of what was kept."""

from __future__ import annotations

from typing import Any

import pytest
from both_arms import both_arms
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.patcher.binding.loading import LoadOptions
from hf_sparsify.patcher.methods import TopK


def spoken(record: Any, arm: str) -> dict[str, Any]:
    """What an arm said, without the numbers that rounding may move in their last digits."""
    return {name: value for name, value in record.answer(arm).items() if name != "margin" and not name.startswith("_")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["demo-bert", "demo-llama", "demo-t5"])
def test_predictions_are_those_of_one_item_at_a_time(name: str) -> None:
    loaded = load_named(name, LoadOptions())
    items = load_items("demo").sample(32, seed=1)
    one, many = (both_arms(loaded, items, TopK(k=16), batch_size=size, max_new_tokens=8) for size in (1, 12))
    for a, b in zip(one.records, many.records, strict=True):
        assert a.input_hash == b.input_hash
        for arm in ("dense", "patched"):
            assert spoken(a, arm) == spoken(b, arm)
        assert a.distance["kl"] == pytest.approx(b.distance["kl"], abs=1e-3)
    assert one.journal.meter.total().kept == many.journal.meter.total().kept
