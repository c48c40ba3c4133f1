"""Thresholds belong to the scores that they were fitted to: everything else is refused or said."""

from __future__ import annotations

import copy
import logging
import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from hf_sparsify.errors import RecipeMismatchError
from hf_sparsify.patcher.binding.attention import PATCH_ATTRIBUTE
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import Patch, apply_plan, current_patch, remove_patch
from hf_sparsify.patcher.methods import TopK, TopTheta
from hf_sparsify.patcher.thresholds import ModuleThresholds
from patched_models import everything, state
from tiny_models import FAMILIES, build, inputs, logits
from torch import nn

METHOD = TopTheta(k=3)
THETA = {"post-softmax": -2.0, "max-relative": -1.0, "pre-softmax": 0.5}


def table(placement: str = "post-softmax", shortest: int = 1, longest: int = 64, **fields: Any) -> ModuleThresholds:
    return ModuleThresholds(
        torch.tensor([float(shortest)]), torch.full((4, 1), THETA[placement]), shortest, longest, placement, **fields
    )


def fitted(model: nn.Module, **fields: Any) -> dict[str, ModuleThresholds]:
    """Tables that say all that can be said about their modules."""
    return {m.name: table(nature=m.nature, **fields) for m in attention_modules(model)}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("hf_sparsify")]


@pytest.mark.parametrize("name", FAMILIES)
def test_tables_that_fit_are_taken_without_a_word(name: str, caplog: pytest.LogCaptureFixture) -> None:
    model = build(name)
    call = inputs(name)
    dense = logits(model, call)
    apply_plan(model, everything(model, METHOD), fitted(model))
    with caplog.at_level(logging.WARNING):
        assert not torch.allclose(logits(model, call), dense)
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        (METHOD, {"placement": "pre-softmax"}, "are for pre-softmax placement, the plan asks for post-softmax: calib"),
        (METHOD, {"placement": "max-relative"}, "are for max-relative placement, the plan asks for post-softmax"),
        (METHOD, {"nature": "bidirectional"}, "are for bidirectional, the module is causal self-attention: calib"),
        (METHOD, {"nature": "cross-attention"}, "are for cross-attention"),
        (
            METHOD,
            {"nature": "causal self-attention in a window of 5"},
            ".* in a window of 5, the module is causal self-",
        ),
        (METHOD, {"theta": torch.zeros(2, 1)}, "are for 2 heads, the module has 4"),
        (
            TopTheta(k=3, placement="pre-softmax", compensation="sdc", denominator="offline"),
            {"placement": "pre-softmax"},
            "hold no offline denominator, which the plan asks for: calibrate anew with `sparsify calibrate`",
        ),
    ],
)
def test_a_table_of_other_scores_is_refused_and_nothing_is_changed(
    method: TopTheta, wrong: dict[str, Any], message: str
) -> None:
    model, call = build("llama"), inputs("llama")
    dense, before = logits(model, call), state(model)
    tables = fitted(model)
    last = list(tables)[-1]
    tables = {name: replace(made, placement=method.placement) for name, made in tables.items()}
    if method.denominator == "offline":
        tables = {name: replace(made, dropped=torch.ones(4, 1)) for name, made in tables.items()}
        wrong = {**wrong, "dropped": None}
    tables[last] = replace(tables[last], **wrong)
    with pytest.raises(RecipeMismatchError, match=f"the thresholds of {last} {message}"):
        apply_plan(model, everything(model, method), tables)
    assert state(model) == before
    assert torch.equal(logits(model, call), dense)


def test_a_window_of_another_width_is_another_nature() -> None:
    model = build("gemma2")
    natures = [m.nature for m in attention_modules(model)]
    assert natures == ["causal self-attention in a window of 5", "causal self-attention"]
    tables = fitted(model)
    first = next(iter(tables))
    tables[first] = replace(tables[first], nature="causal self-attention in a window of 4096")
    with pytest.raises(RecipeMismatchError, match="window of 4096, the module is causal self-attention in a window of"):
        apply_plan(model, everything(model, METHOD), tables)


def test_a_window_that_every_layer_has_is_part_of_the_nature() -> None:
    assert {m.nature for m in attention_modules(build("mistral"))} == {"causal self-attention in a window of 5"}


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_natures_of_an_encoder_and_a_decoder(name: str) -> None:
    natures = {m.name: m.nature for m in attention_modules(build(name))}
    assert set(natures.values()) == {"bidirectional", "causal self-attention", "cross-attention"}
    assert all((nature == "bidirectional") == ("encoder." in name[:14]) for name, nature in natures.items())


def test_another_scale_is_found_when_it_is_used() -> None:
    model, call = build("llama"), inputs("llama")
    names = [m.name for m in attention_modules(model)]
    apply_plan(model, everything(model, METHOD), dict.fromkeys(names, table(scale=8**-0.5)))
    logits(model, call)
    remove_patch(model)
    apply_plan(model, everything(model, METHOD), dict.fromkeys(names, table(scale=1.0)))
    with pytest.raises(
        RecipeMismatchError, match=f"{names[0]} are for scores scaled by 1, and the model scales by 0.35"
    ):
        logits(model, call)


# Rows outside the table


@pytest.mark.parametrize("placement", list(THETA))
@pytest.mark.parametrize(("shortest", "longest"), [(1, 9), (6, 64), (20, 30)])
def test_rows_outside_the_table_are_told_once_for_all_modules_and_calls(
    placement: str, shortest: int, longest: int, caplog: pytest.LogCaptureFixture
) -> None:
    model, call = build("llama"), inputs("llama")
    method = TopTheta(k=3, placement=placement)
    tables = fitted(model, placement=placement, shortest=shortest, longest=longest)
    with caplog.at_level(logging.WARNING):
        apply_plan(model, everything(model, method), tables)
        for _ in range(2):
            logits(model, call)
        (said,) = warnings(caplog)
        assert f"fewer than {shortest} or more than {longest} keys" in said
        assert "exact top-k" in said
        assert "model.layers.0.self_attn" in said
        remove_patch(model)
        apply_plan(model, everything(model, method), tables)
        logits(model, call)
    assert warnings(caplog) == [said, said]


def test_rows_that_are_dense_anyway_need_no_threshold(caplog: pytest.LogCaptureFixture) -> None:
    model, call = build("llama"), inputs("llama", "left")
    with caplog.at_level(logging.WARNING):
        apply_plan(model, everything(model, METHOD), fitted(model, shortest=4, longest=12))
        logits(model, call)
        remove_patch(model)
        apply_plan(model, everything(model, replace(METHOD, min_length=9)), fitted(model, shortest=9, longest=12))
        logits(model, call)
    assert warnings(caplog) == []


@pytest.mark.parametrize("other", [None, TopK(k=3)], ids=["no table", "top-k"])
def test_who_has_no_thresholds_is_told_of_none(other: TopK | None, caplog: pytest.LogCaptureFixture) -> None:
    model, call = build("llama"), inputs("llama")
    tables = fitted(model, longest=5) if other is not None else None
    with caplog.at_level(logging.WARNING):
        apply_plan(model, everything(model, other or METHOD), tables)
        logits(model, call)
    assert warnings(caplog) == []


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_a_copy_has_the_same_tables_and_has_told_what_was_told(carry: Any, caplog: pytest.LogCaptureFixture) -> None:
    model, call = build("llama"), inputs("llama")
    apply_plan(model, everything(model, METHOD), fitted(model, longest=9))
    with caplog.at_level(logging.WARNING):
        sparse = logits(model, call)
        twin = carry(model)
        assert torch.equal(logits(twin, call), sparse)
    assert len(warnings(caplog)) == 1
    patch = current_patch(twin)
    assert isinstance(patch, Patch)
    told = [getattr(module, PATCH_ATTRIBUTE).told for module, _ in patch.attention]
    assert all(said is told[0] for said in told)
