"""Calibrating a model: what is observed, how, and that the model is left as it was."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import tiny_models
import torch
from hf_sparsify.calibration import run
from hf_sparsify.calibration.histogram import ScoreHistogram
from hf_sparsify.calibration.run import calibrate_plan
from hf_sparsify.errors import DataError, RecipeMismatchError, UsageError
from hf_sparsify.patcher.binding.attention import ATTENTION_NAME
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE, apply_plan, remove_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta
from hf_sparsify.processes import Processes
from torch import Tensor, nn

FAMILIES = ("llama", "gemma2", "gpt2", "bert", "t5", "bart")


def plan_for(model: nn.Module, method: AttentionMethod) -> dict[str, AttentionMethod]:
    return {module.name: method for module in attention_modules(model)}


def samples(name: str, seeds: range) -> list[dict[str, Tensor]]:
    made = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        sample = {"input_ids": torch.randint(5, tiny_models.VOCABULARY, (1, 40 + seed % 8), generator=generator)}
        if name in tiny_models.ENCODER_DECODERS:
            sample["decoder_input_ids"] = torch.randint(5, tiny_models.VOCABULARY, (1, 20), generator=generator)
        made.append(sample)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_every_module_gets_a_table_with_a_row_per_query_head(name: str) -> None:
    model = tiny_models.build(name)
    before = tiny_models.logits(model, tiny_models.inputs(name))
    plan, tables = calibrate_plan(model, plan_for(model, TopK(k=4)), samples(name, range(4)))
    assert set(plan.values()) == {TopTheta(k=4)}
    assert set(tables) == set(plan)
    # Grouped-query models have fewer KV heads; thresholds belong to query heads.
    assert {table.heads for table in tables.values()} == {4}
    assert not hasattr(model, MODEL_ATTRIBUTE)
    assert torch.equal(tiny_models.logits(model, tiny_models.inputs(name)), before)


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_held_out_samples_keep_about_k(name: str) -> None:
    model = tiny_models.build(name)
    plan, tables = calibrate_plan(model, plan_for(model, TopK(k=6)), samples(name, range(30)))
    patch, meter = apply_plan(model, plan, tables), Meter()
    with patch.metered(meter), torch.no_grad():
        for sample in samples(name, range(100, 130)):
            model(**sample, use_cache=False)
    remove_patch(model)
    assert meter.total().summary()["kept_per_k"] == pytest.approx(1, abs=0.05)


def test_order_of_samples_does_not_matter() -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model, TopK(k=4))
    _, forward = calibrate_plan(model, plan, samples("llama", range(5)))
    _, backward = calibrate_plan(model, plan, reversed(samples("llama", range(5))))
    for name, table in forward.items():
        assert torch.equal(table.theta, backward[name].theta)


class OneOfTwo(Processes):
    """Both processes run one after the other here: the second finds what the first had to say."""

    said: ClassVar[list[bytes]] = []

    def gather(self, value: Any) -> list[Any]:
        self.said.append(pickle.dumps(value))
        return [pickle.loads(said) for said in self.said]  # noqa: S301 - as between real processes


@pytest.mark.parametrize("mine", [range(2), range(5)], ids=["shared", "nothing left for the second"])
def test_two_processes_fit_what_one_fits(mine: range) -> None:
    model = tiny_models.build("llama")
    plan, everything = plan_for(model, TopK(k=4)), samples("llama", range(5))
    fitted, alone = calibrate_plan(model, plan, everything)
    OneOfTwo.said.clear()
    calibrate_plan(model, plan, everything[: len(mine)], OneOfTwo(0, 2))
    both, tables = calibrate_plan(model, plan, everything[len(mine) :], OneOfTwo(1, 2))
    assert (both, list(tables)) == (fitted, list(alone))
    for name, table in alone.items():
        assert torch.equal(table.theta, tables[name].theta)
        assert torch.equal(table.lengths, tables[name].lengths)


def test_modules_run_exact_top_k_while_they_are_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_models.build("llama")
    seen: list[dict[str, AttentionMethod]] = []
    observe = run._observe

    def spy(patch: Any) -> dict[str, ScoreHistogram]:
        seen.append({module.name: module.method for module in patch.module_patches})
        return observe(patch)

    monkeypatch.setattr(run, "_observe", spy)
    calibrate_plan(model, plan_for(model, TopTheta(k=4, protect_first=1)), samples("llama", range(2)))
    assert [set(methods.values()) for methods in seen] == [{TopK(k=4, protect_first=1)}]


def test_deeper_modules_see_what_sparse_ones_give() -> None:
    model = tiny_models.build("llama")
    first, second = plan_for(model, TopK(k=3))
    _, both = calibrate_plan(model, {first: TopK(k=3), second: TopK(k=3)}, samples("llama", range(3)))
    _, first_alone = calibrate_plan(model, {first: TopK(k=3)}, samples("llama", range(3)))
    _, second_alone = calibrate_plan(model, {second: TopK(k=3)}, samples("llama", range(3)))
    assert torch.equal(both[first].theta, first_alone[first].theta)
    assert not torch.equal(both[second].theta, second_alone[second].theta)


def test_every_module_keeps_its_own_budget_and_options() -> None:
    model = tiny_models.build("llama")
    first, second = plan_for(model, TopK(k=3))
    plan, _ = calibrate_plan(
        model, {first: TopK(keep=0.5, protect_first=1), second: TopTheta(k=8, min_keep=3)}, samples("llama", range(2))
    )
    assert plan == {first: TopTheta(keep=0.5, protect_first=1), second: TopTheta(k=8, min_keep=3)}


def test_a_module_whose_rows_are_within_k_has_no_table() -> None:
    model = tiny_models.build("llama")
    first, second = plan_for(model, TopK(k=3))
    plan, tables = calibrate_plan(model, {first: TopK(k=4), second: TopK(k=500)}, samples("llama", range(2)))
    assert (set(plan), set(tables)) == ({first, second}, {first})


def test_padding_is_not_recorded() -> None:
    model = tiny_models.build("llama")
    plan = plan_for(model, TopK(k=4))
    [sample] = samples("llama", range(1))
    length = sample["input_ids"].shape[1]
    padded = {
        "input_ids": torch.nn.functional.pad(sample["input_ids"], (0, 9), value=7),
        "attention_mask": torch.nn.functional.pad(torch.ones(1, length, dtype=torch.int64), (0, 9)),
    }
    _, alone = calibrate_plan(model, plan, [sample])
    _, beside = calibrate_plan(model, plan, [padded])
    for name, table in alone.items():
        assert (table.shortest, table.longest) == (beside[name].shortest, beside[name].longest) == (5, length)
        assert beside[name].theta == pytest.approx(table.theta, abs=0.02)


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
