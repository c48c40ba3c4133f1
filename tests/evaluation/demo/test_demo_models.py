"""The embedded models: anyone can load them, they answer, and they need more than a few keys."""

from __future__ import annotations

import functools

import pytest
import transformers
from hf_sparsify import LoadOptions, TopK, TopKFeedForward
from hf_sparsify.commands.target import load_named
from hf_sparsify.evaluation.demo import DEMO_MODELS, demo_data_path, demo_model_path
from hf_sparsify.evaluation.demo.stories import POOL_VALUES, vocabulary
from hf_sparsify.evaluation.run import evaluate
from hf_sparsify.evaluation.sources import load_questions
from hf_sparsify.evaluation.tasks.base import Prediction
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.plan import plan_model

MODELS = sorted(DEMO_MODELS)
CLASSES = {
    "demo-bert": "BertForQuestionAnswering",
    "demo-llama": "LlamaForCausalLM",
    "demo-t5": "T5ForConditionalGeneration",
}
QUESTIONS = load_questions("demo").sample(96, seed=1)


@functools.cache
def loaded(name: str) -> LoadedModel:
    return load_named(name, LoadOptions())


def predictions(name: str, *methods: TopK | TopKFeedForward | None) -> list[Prediction]:
    plan = plan_model(loaded(name).model, *methods)
    return evaluate(loaded(name), plan, QUESTIONS, batch_size=32, max_new_tokens=4).predictions


def exact_match(found: list[Prediction], arm: str) -> float:
    return sum(p.scores[arm]["exact_match"] for p in found) / len(found)


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
    texts = [question.context for question in QUESTIONS.questions]
    assert not any(tokenizer.unk_token_id in ids for ids in tokenizer(texts)["input_ids"])


@pytest.mark.parametrize("name", MODELS)
def test_a_model_answers_and_needs_its_keys(name: str) -> None:
    few = predictions(name, TopK(k=2))
    assert exact_match(few, "dense") >= 0.85
    pooling = [p for p in few if p.question.kind in POOL_VALUES]
    assert exact_match(pooling, "patched") <= exact_match(pooling, "dense") - 0.2


@pytest.mark.parametrize("name", MODELS)
def test_a_model_needs_some_of_its_activations(name: str) -> None:
    few = predictions(name, None, TopKFeedForward(k=1))
    assert exact_match(few, "patched") <= exact_match(few, "dense") - 0.1
