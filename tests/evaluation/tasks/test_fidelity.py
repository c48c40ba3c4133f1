"""Plain text: KL, agreement and perplexity against float64 over whole passes."""

from __future__ import annotations

import math

import pytest
import tiny_language_models
import torch
from both_arms import both_arms, plan_for, summary
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.items import ItemSet, Text, make_item_set
from hf_sparsify.evaluation.tasks import TaskOptions, task_for
from hf_sparsify.evaluation.tasks.fidelity import compared
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.methods import TopK

FAMILIES = ("llama", "gpt2", "t5")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_model(str(tiny_language_models.save(name, folder / name))) for name in FAMILIES}


@pytest.fixture(scope="module")
def items() -> ItemSet:
    texts = [Text(record["id"], record["context"], kind=record["kind"]) for record in tiny_language_models.records(5)]
    return make_item_set("rooms.txt", "", texts, DATASETS["text"])


def log_probs(loaded: LoadedModel, ids: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """log p in float64 before every predicted token, and the tokens."""
    tokens = torch.tensor([ids])
    with torch.no_grad():
        if loaded.model.config.is_encoder_decoder:
            half = len(ids) // 2
            start = torch.full((1, 1), loaded.model.config.decoder_start_token_id)
            decoder = torch.cat([start, tokens[:, half:-1]], 1)
            logits = loaded.model(input_ids=tokens[:, :half], decoder_input_ids=decoder).logits[0]
            return logits.double().log_softmax(-1), tokens[0, half:]
        return loaded.model(tokens).logits[0, :-1].double().log_softmax(-1), tokens[0, 1:]


@pytest.mark.parametrize("name", FAMILIES)
def test_figures_are_those_of_float64(name: str, models: dict[str, LoadedModel], items: ItemSet) -> None:
    loaded, method = models[name], TopK(k=3)
    found = both_arms(loaded, items, method)
    totals = {"dense": 0.0, "patched": 0.0}
    tokens = 0
    for record in found.records:
        ids = loaded.tokenizer(record.item.text)["input_ids"]
        dense, actual = log_probs(loaded, ids)
        apply_plan(loaded.model, plan_for(loaded, method))
        patched, _ = log_probs(loaded, ids)
        remove_patch(loaded.model)
        kl = (dense.exp() * (dense - patched)).sum(-1).mean()
        assert record.distance["kl"] == pytest.approx(float(kl), abs=1e-5)
        agreement = (dense.argmax(-1) == patched.argmax(-1)).double().mean()
        assert record.distance["agreement"] == pytest.approx(float(agreement))
        assert found.task.score(record, "patched")["top1_agreement"] == pytest.approx(float(agreement))
        assert found.task.score(record, "dense")["top1_agreement"] == 1
        right = (patched.argmax(-1) == actual).double().mean()
        assert found.task.score(record, "patched")["next_token"] == pytest.approx(float(right))
        tokens += len(actual)
        for arm, values in (("dense", dense), ("patched", patched)):
            totals[arm] -= float(values.gather(-1, actual[:, None]).sum())
    perplexity = summary(found)["distance"]["perplexity"]
    for arm, total in totals.items():
        assert perplexity[arm] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert perplexity["ratio"] == pytest.approx(perplexity["patched"] / perplexity["dense"], rel=1e-6)
    assert perplexity["low"] <= perplexity["ratio"] <= perplexity["high"]
    assert summary(found)["distance"]["kl"]["value"] > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_in_the_dense_limit_nothing_differs(name: str, models: dict[str, LoadedModel], items: ItemSet) -> None:
    results = summary(both_arms(models[name], items, TopK(keep=1.0)))
    assert results["scores"]["patched"]["top1_agreement"] == 100
    assert results["distance"]["perplexity"]["ratio"] == pytest.approx(1, abs=1e-5)
    assert results["same_answer_share"] is None
    assert results["flips"] is None
    assert results["primary"] == "top1_agreement"
    assert results["kept"]["total"]["kept_share"] == 1


def test_what_the_patched_pass_keeps_is_counted_once(models: dict[str, LoadedModel], items: ItemSet) -> None:
    found = both_arms(models["llama"], items, TopK(k=2))
    lengths = [record.tokens - 1 for record in found.records]  # the last token predicts nothing
    heads, layers = 4, 2
    assert found.journal.meter.total().visible == heads * layers * sum(n * (n + 1) // 2 for n in lengths)
    assert found.journal.seconds["patched"] > 0


def test_a_text_of_one_token_is_left_out(models: dict[str, LoadedModel], items: ItemSet) -> None:
    short = make_item_set("t", "", (*items.items, Text("short", "Ann")), DATASETS["text"])
    assert both_arms(models["llama"], short, TopK(k=2)).left_out.total() == 1


def test_long_texts_are_cut_at_the_models_positions(models: dict[str, LoadedModel]) -> None:
    long = make_item_set("t", "", [Text("long", "Ann is in the attic . " * 40)], DATASETS["text"])
    assert both_arms(models["gpt2"], long, TopK(k=2)).records[0].tokens == 96
    (sample,) = task_for(models["gpt2"], long).calibration_inputs(long.items[0])
    assert sample["input_ids"].shape == (1, 96)


def test_prompts_do_not_go_with_text(models: dict[str, LoadedModel], items: ItemSet) -> None:
    with pytest.raises(
        UsageError, match="--shots and --prompt-template are for models that are told what to do: text as it is"
    ):
        both_arms(models["llama"], items, TopK(k=2), template="{text}")
    with pytest.raises(UsageError, match="--max-input-tokens is for models that are told what to do: text as it is"):
        both_arms(models["llama"], items, TopK(k=2), max_input_tokens=4)


def test_closed_form() -> None:
    dense = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]]).log()
    patched = torch.tensor([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]]).log()
    found = compared(dense, patched, torch.tensor([0, 1]))
    assert found["kl"] == pytest.approx((0.5 * math.log(2) - 0.25 * math.log(2)) / 2, abs=1e-6)
    assert found["agreement"] == 0.5
    assert found["right"] == {"dense": 1.0, "patched": 0.5}
    assert found["nll"]["patched"] == pytest.approx((math.log(4) - math.log(0.8)) / 2, abs=1e-6)
    assert TaskOptions().batch_size == 8
