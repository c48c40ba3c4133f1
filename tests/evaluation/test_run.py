"""Both arms on the same questions: the dense limit, order, batches, what does not fit, and leaving the model alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import tiny_language_models
import torch
from both_arms import answers, both_arms, distances, summary
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation.formats import read_items
from hf_sparsify.evaluation.items import ItemSet
from hf_sparsify.evaluation.prompts import COMPLETION, extract_answer
from hf_sparsify.evaluation.tasks import generative
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE
from hf_sparsify.patcher.methods import AttentionMethod, TopK, TopTheta

FAMILIES = ("llama", "chat", "gpt2", "t5", "bart")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name in FAMILIES:
        family = "llama" if name == "chat" else name
        made[name] = load_model(str(tiny_language_models.save(family, folder / name, chat=name == "chat")))
    return made


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> ItemSet:
    file = tiny_language_models.save_questions(tmp_path_factory.mktemp("data") / "q.jsonl", 7)
    return read_items(file, "q.jsonl")


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", [TopK(keep=1.0), TopK(k=400), TopTheta(keep=1.0)], ids=["keep", "k", "top-theta"])
def test_in_the_dense_limit_both_arms_are_equal(
    name: str, method: AttentionMethod, models: dict[str, LoadedModel], questions: ItemSet
) -> None:
    results = summary(both_arms(models[name], questions, method))
    assert results["same_answer_share"] == 1
    assert results["distance"]["kl"]["value"] == pytest.approx(0, abs=1e-5)
    assert set(results["scores"]["difference"].values()) == {0}
    assert results["kept"]["total"]["kept_share"] == 1
    assert results["kept"]["total"]["long_rows"] == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_a_small_k_is_seen(name: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    results = summary(both_arms(models[name], questions, TopK(k=2)))
    assert results["distance"]["kl"]["value"] > 1e-4
    assert results["kept"]["total"]["kept_per_k"] == 1
    assert results["kept"]["total"]["kept_share"] < 0.5


@pytest.mark.parametrize("name", FAMILIES)
def test_batch_size_does_not_matter(name: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    small, large = (both_arms(models[name], questions, TopK(k=4), batch_size=size) for size in (1, 4))
    assert answers(small) == answers(large)
    assert distances(small) == pytest.approx(distances(large), abs=1e-4)
    assert distances(small, "tokens") == distances(large, "tokens")
    for a, b in zip(small.records, large.records, strict=True):
        assert (a.dense["answer_tokens"], a.patched["answer_tokens"]) == (
            b.dense["answer_tokens"],
            b.patched["answer_tokens"],
        )
        assert (a.input_hash, a.tokens) == (b.input_hash, b.tokens)
    assert small.journal.meter.total().kept == large.journal.meter.total().kept
    assert small.journal.meter.total().visible == large.journal.meter.total().visible


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_records_are_in_the_order_of_the_items(
    batch_size: int, models: dict[str, LoadedModel], questions: ItemSet
) -> None:
    done: list[int] = []
    found = both_arms(models["llama"], questions, TopK(k=4), batch_size=batch_size, advance=done.append)
    assert [record.item for record in found.records] == list(questions.items)
    assert sum(done) == len(questions)
    lengths = [record.tokens for record in found.records]
    assert lengths != sorted(lengths, reverse=True), "the batches were formed in another order"


def test_questions_longer_than_the_positions_are_left_out_and_counted(
    models: dict[str, LoadedModel], questions: ItemSet
) -> None:
    long = replace(questions.items[2], id="long", context=questions.items[2].context * 5)
    mixed = replace(questions, items=(*questions.items[:2], long, *questions.items[3:]))
    done: list[int] = []
    for name in ("gpt2", "bart"):
        found = both_arms(models[name], mixed, TopK(k=4), advance=done.append)
        assert found.left_out.total() == 1
        assert [record.item.id for record in found.records] == ["q0", "q1", "q3", "q4", "q5", "q6"]
        assert summary(found)["dataset"]["left_out_too_long"] == 1
    assert sum(done) == 2 * len(mixed), "the progress bar reaches its end"
    assert both_arms(models["t5"], mixed, TopK(k=4)).left_out.total() == 0
    with pytest.raises(DataError, match=r"no item of q\.jsonl fits"):
        both_arms(models["gpt2"], replace(questions, items=(long,)), TopK(k=4))


def test_room_for_the_answer_counts_for_a_decoder(models: dict[str, LoadedModel], questions: ItemSet) -> None:
    longest = max(record.tokens for record in both_arms(models["gpt2"], questions, TopK(k=4)).records)
    room = 96 - longest
    assert both_arms(models["gpt2"], questions, TopK(k=4), max_new_tokens=room).left_out.total() == 0
    assert both_arms(models["gpt2"], questions, TopK(k=4), max_new_tokens=room + 1).left_out.total() > 0


@pytest.mark.parametrize("option", ["batch_size", "max_new_tokens"])
def test_numbers_below_one_are_refused(option: str, models: dict[str, LoadedModel], questions: ItemSet) -> None:
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')} must be at least 1, not 0"):
        both_arms(models["llama"], questions, TopK(k=4), **{option: 0})


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_model_is_left_dense(
    error: type[BaseException],
    models: dict[str, LoadedModel],
    questions: ItemSet,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = models["llama"]
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    with torch.no_grad():
        before = loaded.model(tokens).logits
        both_arms(loaded, questions, TopK(k=2))
        assert torch.equal(loaded.model(tokens).logits, before)

        def fail(*tensors: Any) -> None:
            raise error

        monkeypatch.setattr(generative, "kl_divergence", fail)
        with pytest.raises(error):
            both_arms(loaded, questions, TopK(k=2))
        assert not hasattr(loaded.model, MODEL_ATTRIBUTE)
        assert torch.equal(loaded.model(tokens).logits, before)


def test_the_dense_arm_is_the_unpatched_model(models: dict[str, LoadedModel], questions: ItemSet) -> None:
    loaded = models["llama"]
    found = both_arms(loaded, questions, TopK(k=2), batch_size=1)
    differ = 0
    for record in found.records:
        prompt = f"Passage: {record.item.context}\nQuestion: {record.item.question}\nAnswer:"
        inputs = loaded.tokenizer(prompt, return_tensors="pt")
        sequences = loaded.model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], max_new_tokens=5, do_sample=False
        )
        text = loaded.tokenizer.decode(sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert record.dense["answer"] == extract_answer(text, COMPLETION)
        assert record.tokens == inputs["input_ids"].shape[1]
        differ += not record.same_answer
    assert differ, "the patched arm is another one"


def test_a_model_whose_weights_are_offloaded(questions: ItemSet, tmp_path: Path) -> None:
    loaded = load_model(str(tiny_language_models.save("llama", tmp_path / "llama")))
    expected = both_arms(loaded, questions, TopK(k=4))
    accelerate.cpu_offload(loaded.model, execution_device=torch.device("cpu"))
    assert loaded.model.device.type == "meta"
    found = both_arms(loaded, questions, TopK(k=4))
    assert [record.to_dict() for record in found.records] == [record.to_dict() for record in expected.records]
