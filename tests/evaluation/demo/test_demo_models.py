"""The embedded models: anyone can load them, they answer, and they need more than a few keys."""

from __future__ import annotations

import functools
from collections.abc import Collection

import pytest
import transformers
from both_arms import both_arms
from hf_sparsify import LoadOptions, TopK, TopKFeedForward
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.demo import DEMO_MODELS, demo_data_path, demo_model_path
from hf_sparsify.evaluation.demo.stories import POOL_VALUES, vocabulary
from hf_sparsify.evaluation.run import Evaluation
from hf_sparsify.evaluation.sources import load_items
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.plan import plan_model

MODELS = sorted(DEMO_MODELS)
CLASSES = {
    "demo-bert": "BertForQuestionAnswering",
    "demo-llama": "LlamaForCausalLM",
    "demo-t5": "T5ForConditionalGeneration",
}
QUESTIONS = load_items("demo").sample(96, seed=1)


@functools.cache
def loaded(name: str) -> LoadedModel:
    return load_named(name, LoadOptions())


def evaluated(name: str, *methods: TopK | TopKFeedForward | None) -> Evaluation:
    plan = plan_model(loaded(name).model, *methods)
    return both_arms(loaded(name), QUESTIONS, plan, batch_size=32, max_new_tokens=4)


def exact_match(found: Evaluation, arm: str, kinds: Collection[str] | None = None) -> float:
    records = [record for record in found.records if kinds is None or record.item.kind in kinds]
    return sum(found.task.score(record, arm)["exact_match"] for record in records) / len(records)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="demo-bert, demo-llama, demo-t5"):
        demo_model_path("demo-gpt")
    with pytest.raises(ValueError, match="validation"):
        demo_data_path("test")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_small_and_loads_plainly(name: str) -> None:
    path = demo_model_path(name)
    assert (path / "model.safetensors").stat().st_size < 5_000_000
    cls = getattr(transformers, CLASSES[name])
    model, report = cls.from_pretrained(path, local_files_only=True, output_loading_info=True)
    assert not report["missing_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    assert set(vocabulary()) - {"context", "question"} <= set(tokenizer.get_vocab())
    assert model.config.vocab_size == len(tokenizer)
    texts = [question.context for question in QUESTIONS.items]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_and_needs_its_keys(name: str) -> None:
    few = evaluated(name, TopK(k=2))
    assert len(few.records) == 96
    assert exact_match(few, "dense") >= 0.85
    assert exact_match(few, "patched", POOL_VALUES) <= exact_match(few, "dense", POOL_VALUES) - 0.2


@pytest.mark.parametrize("name", MODELS)
def test_a_model_needs_some_of_its_activations(name: str) -> None:
    few = evaluated(name, None, TopKFeedForward(k=1))
    assert exact_match(few, "patched") <= exact_match(few, "dense") - 0.1
