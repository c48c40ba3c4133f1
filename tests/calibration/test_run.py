"""Calibrating a model: what is observed, how, and that the model is left as it was."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import tiny_models
import torch
import transformers
from hf_sparsify.calibration import run
from hf_sparsify.calibration.options import CalibrationOptions
from hf_sparsify.calibration.run import calibrate_items, calibrate_plan, fit_plan, start
from hf_sparsify.errors import DataError, RecipeMismatchError, UsageError
from hf_sparsify.patcher.binding.attention import ATTENTION_NAME
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE, apply_plan
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta
from hf_sparsify.patcher.methods.top_theta import PLACEMENTS
from hf_sparsify.processes import Processes
from score_chunks import same, samples
from torch import Tensor, nn

FAMILIES = ("llama", "gemma2", "gpt2", "bert", "t5", "bart")


def plan_for(model: nn.Module, method: AttentionMethod) -> dict[str, AttentionMethod]:
    return {module.name: method for module in attention_modules(model)}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_module_gets_a_table_with_a_row_per_query_head(name: str) -> None:
    model = tiny_models.build(name)
    before = tiny_models.logits(model, tiny_models.inputs(name))
    made = calibrate_plan(model, plan_for(model, TopK(k=4)), samples(name, range(4)))
    plan, tables = made.plan, made.thresholds
    assert set(plan.values()) == {TopTheta(k=4)}
    assert set(tables) == set(plan)
    # Grouped-query models have fewer KV heads; thresholds belong to query heads.
    assert {table.heads for table in tables.values()} == {4}
    found = {module.name: module for module in attention_modules(model)}
    assert all(table.nature == found[n].nature for n, table in tables.items())
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert torch.equal(tiny_models.logits(model, tiny_models.inputs(name)), before)


def test_order_of_samples_does_not_matter() -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model, TopK(k=4))
    forward = calibrate_plan(model, plan, samples("llama", range(5))).observed
    backward = calibrate_plan(model, plan, reversed(samples("llama", range(5)))).observed
    assert all(same(histogram, backward.histograms[name]) for name, histogram in forward.histograms.items())


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bert", "t5"])
def test_batches_and_padding_on_either_side_do_not_matter(name: str, padding: str, placement: str) -> None:
    if name == "bert" and padding == "left":
        pytest.skip("its absolute positions count padding on the left as well")
    model = tiny_models.build(name).double()
    options, plan = CalibrationOptions(placement), plan_for(model, TopK(k=3))
    call = tiny_models.inputs(name, padding, length=30)
    cut = slice(4, None) if padding == "left" else slice(None, -4)
    first = {key: value[:1] for key, value in call.items()}
    second = {key: value[1:] if key.startswith("decoder") else value[1:, cut] for key, value in call.items()}
    together = calibrate_plan(model, plan, [call], options)
    alone = calibrate_plan(model, plan, [second, first], options)
    for key, histogram in together.observed.histograms.items():
        assert same(histogram, alone.observed.histograms[key]), key
        assert torch.equal(together.thresholds[key].theta, alone.thresholds[key].theta)


class OneOfTwo(Processes):
    """Both processes run one after the other here: the second finds what the first had to say."""

    said: ClassVar[dict[int, list[bytes]]] = {}

    def gather(self, value: Any) -> list[Any]:
        mine = self.said.setdefault(self.rank, [])
        mine.append(pickle.dumps(value))
        return [pickle.loads(said[len(mine) - 1]) for said in self.said.values()]  # noqa: S301 - as between processes


@pytest.mark.parametrize("mine", [range(2), range(5)], ids=["shared", "nothing left for the second"])
def test_two_processes_fit_what_one_fits(mine: range) -> None:
    model = tiny_models.build("llama")
    plan, everything = plan_for(model, TopK(k=4)), samples("llama", range(5))
    alone = calibrate_plan(model, plan, everything)
    OneOfTwo.said.clear()
    calibrate_plan(model, plan, everything[: len(mine)], processes=OneOfTwo(0, 2))
    both = calibrate_plan(model, plan, everything[len(mine) :], processes=OneOfTwo(1, 2))
    assert (both.plan, list(both.thresholds)) == (alone.plan, list(alone.thresholds))
    assert len(both.observed.items) == 5
    for name, histogram in alone.observed.histograms.items():
        assert same(histogram, both.observed.histograms[name])
        assert torch.equal(alone.thresholds[name].theta, both.thresholds[name].theta)


@pytest.mark.parametrize(
    ("activations", "expected"),
    [
        ("sparse", TopK(k=4, protect_first=1, compensation="sdc+vmc")),
        ("dense", TopK(keep=1.0, protect_first=1, compensation="sdc+vmc")),
    ],
)
def test_what_modules_run_while_they_are_observed(
    activations: str, expected: TopK, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_models.build("llama")
    seen: list[dict[str, AttentionMethod]] = []

    def spy(model: Any, plan: Any) -> Any:
        seen.append(plan)
        return apply_plan(model, plan)

    monkeypatch.setattr(run, "apply_plan", spy)
    plan = plan_for(model, TopTheta(k=4, protect_first=1, compensation="sdc+vmc", v_mean="visible", min_keep=2))
    made = calibrate_plan(model, plan, samples("llama", range(2)), CalibrationOptions(activations=activations))
    assert [set(methods.values()) for methods in seen] == [{expected}]
    assert made.plan == plan


def test_only_deeper_modules_know_whether_activations_are_sparse() -> None:
    model = tiny_models.build("llama")
    first, second = plan = plan_for(model, TopK(k=3))
    sparse, dense = (
        calibrate_plan(model, plan, samples("llama", range(3)), CalibrationOptions(activations=how)).observed.histograms
        for how in ("sparse", "dense")
    )
    assert same(sparse[first], dense[first])
    assert not same(sparse[second], dense[second])


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_options_reach_the_plan_and_the_tables(placement: str) -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model, TopK(k=4, compensation="sdc+vmc"))
    denominator = "exact" if placement == "post-softmax" else "offline"
    options = CalibrationOptions(placement, "mean", 0.1, denominator=denominator)
    made = calibrate_plan(model, plan, samples("llama", range(3)), options)
    assert set(made.plan.values()) == {
        TopTheta(k=4, compensation="sdc+vmc", placement=placement, denominator=denominator)
    }
    assert {table.placement for table in made.thresholds.values()} == {placement}
    assert {table.dropped is None for table in made.thresholds.values()} == {placement == "post-softmax"}
    lower = calibrate_plan(model, plan, samples("llama", range(3)), replace(options, alpha=0.0)).thresholds
    assert all(bool((table.theta >= lower[name].theta).all()) for name, table in made.thresholds.items())
    again = calibrate_plan(model, made.plan, samples("llama", range(3)))
    assert again.plan == made.plan, "what a module has stays unless something else is asked for"


def test_thresholds_for_another_k_are_those_of_a_first_module_calibrated_at_it() -> None:
    model = tiny_models.build("llama")
    first, second = plan_for(model, TopK(k=3))
    made = calibrate_plan(model, {first: TopK(k=3), second: TopK(k=3)}, samples("llama", range(3)))
    other = fit_plan({first: TopTheta(k=7), second: TopTheta(k=500)}, made.observed.histograms, CalibrationOptions())
    anew = calibrate_plan(model, {first: TopK(k=7), second: TopK(k=7)}, samples("llama", range(3)))
    assert set(other) == {first}
    assert torch.equal(other[first].theta, anew.thresholds[first].theta)


def test_deeper_modules_see_what_sparse_ones_give() -> None:
    model = tiny_models.build("llama")
    first, second = plan_for(model, TopK(k=3))
    both = calibrate_plan(model, {first: TopK(k=3), second: TopK(k=3)}, samples("llama", range(3))).thresholds
    first_alone = calibrate_plan(model, {first: TopK(k=3)}, samples("llama", range(3))).thresholds
    second_alone = calibrate_plan(model, {second: TopK(k=3)}, samples("llama", range(3))).thresholds
    assert torch.equal(both[first].theta, first_alone[first].theta)
    assert not torch.equal(both[second].theta, second_alone[second].theta)


def test_every_module_keeps_its_own_budget_and_options() -> None:
    model = tiny_models.build("llama")
    first, second = plan_for(model, TopK(k=3))
    plan = {first: TopK(keep=0.5, protect_first=1), second: TopTheta(k=8, min_keep=3, min_length=10)}
    made = calibrate_plan(model, plan, samples("llama", range(2)))
    assert made.plan == {
        first: TopTheta(keep=0.5, protect_first=1),
        second: TopTheta(k=8, min_keep=3, min_length=10),
    }
    assert (made.thresholds[first].shortest, made.thresholds[second].shortest) == (2, 10)


def test_a_module_whose_rows_are_within_k_has_no_table() -> None:
    model = tiny_models.build("llama")
    first, second = plan_for(model, TopK(k=3))
    made = calibrate_plan(model, {first: TopK(k=4), second: TopK(k=500)}, samples("llama", range(2)))
    assert (set(made.plan), set(made.thresholds)) == ({first, second}, {first})


def test_an_item_counts_as_a_whole() -> None:
    model = tiny_models.build("llama")
    plan, first = plan_for(model, TopK(k=4)), samples("llama", range(2))
    whole = calibrate_plan(model, plan, first)
    observed = start(model, whole.plan, CalibrationOptions())
    items = [("a", first), ("b", [first[0], {"input_ids": torch.tensor([[9999]])}])]
    with pytest.raises(IndexError):
        calibrate_items(model, plan, items, observed=observed)
    assert observed.items == ["a"]
    assert all(same(histogram, observed.histograms[n]) for n, histogram in whole.observed.histograms.items())


def broken() -> Iterator[dict[str, Tensor]]:
    yield from samples("llama", range(1))
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("source", "error"), [(broken(), OSError), ([{"input_ids": torch.tensor([[9999]])}], IndexError), ([], DataError)]
)
def test_the_model_is_left_dense_when_a_sample_raises(source: Any, error: type[Exception]) -> None:
    model = tiny_models.build("llama")
    before = tiny_models.logits(model, tiny_models.inputs("llama"))
    with pytest.raises(error):
        calibrate_plan(model, plan_for(model, TopK(k=4)), source)
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert model.config._attn_implementation != ATTENTION_NAME
    assert torch.equal(tiny_models.logits(model, tiny_models.inputs("llama")), before)


def test_what_cannot_be_calibrated_is_refused() -> None:
    model = tiny_models.build("llama")
    with pytest.raises(RecipeMismatchError, match="nowhere"):
        calibrate_plan(model, {"nowhere": TopK(k=4)}, samples("llama", range(1)))
    apply_plan(model, plan_for(model, TopK(k=4)))
    with pytest.raises(UsageError, match="already patched"):
        calibrate_plan(model, plan_for(model, TopK(k=4)), samples("llama", range(1)))
    assert hasattr(model, MODEL_ATTRIBUTE)


def test_the_scale_is_that_of_the_scores_whatever_the_module_names() -> None:
    # OPT scales its queries itself and hands over 1; its attribute says otherwise.
    config = transformers.OPTConfig(
        vocab_size=tiny_models.VOCABULARY, hidden_size=32, ffn_dim=40, num_hidden_layers=2, num_attention_heads=4
    )
    model = transformers.OPTForCausalLM(config).eval()
    made = calibrate_plan(model, plan_for(model, TopK(k=4)), samples("opt", range(2)))
    assert {table.scale for table in made.thresholds.values()} == {1.0}
    with apply_plan(model, made.plan, made.thresholds), torch.no_grad():
        model(**samples("opt", range(1))[0])
