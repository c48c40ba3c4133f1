"""Tasks of lm-evaluation-harness: the same scores as the harness's own, counts without padding, nothing left behind."""

from __future__ import annotations

import copy
import logging
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import tiny_language_models
import torch
from both_arms import plan_for, summary
from harness_tasks import documents, first_document, run, save_task, save_writing_task
from hf_sparsify.evaluation.harness import Harness
from hf_sparsify.evaluation.results import prediction_lines
from hf_sparsify.evaluation.run import Contender
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE
from hf_sparsify.patcher.methods import TopK

pytest.importorskip("lm_eval")

FAMILIES = ("llama", "gpt2", "t5", "bart")
TASKS = {"multiple_choice": save_task, "generate_until": save_writing_task}
FEW_SHOT = {"num_fewshot": 1, "fewshot_split": "validation"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_model(str(tiny_language_models.save(name, folder / name))) for name in FAMILIES}


def own_samples(loaded: LoadedModel, task: Path, batch_size: int) -> list[dict[str, Any]]:
    """What the harness's own model class gives."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = TaskManager(include_defaults=False).load([str(task)])
    for loaded_task in tasks["tasks"].values():
        loaded_task.set_fewshot_seed(0)
    lm = HFLM(pretrained=loaded.model, tokenizer=copy.deepcopy(loaded.tokenizer), batch_size=batch_size)
    [samples] = evaluate(lm, tasks, bootstrap_iters=0)["samples"].values()
    return samples


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_choices_are_those_of_the_harness(family: str, models: dict[str, LoadedModel], tmp_path: Path) -> None:
    task = save_task(tmp_path, "choosing", **FEW_SHOT) if family == "llama" else save_task(tmp_path, "choosing")
    [found] = run(models[family], task)
    samples = own_samples(models[family], task, batch_size=4)
    for record, sample in zip(found.records, samples, strict=True):
        assert record.answer("dense")["log_likelihoods"] == pytest.approx(
            [value for value, _ in sample["filtered_resps"]], abs=1e-4
        )
        assert found.task.score(record, "dense") == {f"{name},none": sample[name] for name in ("acc", "acc_norm")}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dense_answers_are_those_of_the_harness(family: str, models: dict[str, LoadedModel], tmp_path: Path) -> None:
    """Encoder-decoder models are left out: the harness lets them write more than max_gen_toks."""
    task = save_writing_task(tmp_path)
    [found] = run(models[family], task)
    samples = own_samples(models[family], task, batch_size=4)
    answers = [record.answer("dense")["answer"] for record in found.records]
    assert answers == [sample["filtered_resps"][0] for sample in samples]
    assert len(set(answers)) > 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", TASKS)
def test_the_batch_size_changes_nothing(kind: str, family: str, models: dict[str, LoadedModel], tmp_path: Path) -> None:
    task = TASKS[kind](tmp_path, "task")
    [one], [all_at_once] = (run(models[family], task, batch_size=size) for size in (1, 7))
    assert one.journal.meter.to_dict() == all_at_once.journal.meter.to_dict()
    for before, after in zip(prediction_lines(one), prediction_lines(all_at_once), strict=True):
        assert before["patched"]["answer"] == after["patched"]["answer"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", TASKS)
def test_in_the_dense_limit_nothing_differs(
    kind: str, family: str, models: dict[str, LoadedModel], tmp_path: Path
) -> None:
    [found] = run(models[family], TASKS[kind](tmp_path, "task"), k=400)
    results = summary(found)
    assert results["same_answer_share"] == 1
    assert set(results["scores"]["difference"].values()) == {0}
    assert results["kept"]["total"]["kept_share"] == 1


def test_what_is_reported(models: dict[str, LoadedModel], tmp_path: Path) -> None:
    choosing, writing = save_task(tmp_path, "choosing", count=9), save_writing_task(tmp_path)
    advanced: list[int] = []
    harness = Harness.open(f"{choosing}, {writing}", limit=5)
    plans = [plan_for(models["llama"], TopK(k=k)) for k in (2, 400)]
    by_task = harness.evaluate(models["llama"], [Contender(plan) for plan in plans], advance=advanced.append)
    assert sum(advanced) == harness.total(2) == 30
    sparse, dense = by_task[0]
    assert [record.item.id for record in sparse.records] == list("01234")  # the first of the file
    assert sparse.task.metrics == {"acc,none": "acc", "acc_norm,none": "acc_norm"}  # mcc has no score for a document
    assert (sparse.task.primary, sparse.task.right) == ("acc,none", "acc,none")
    assert sparse.task.chance([record.item for record in sparse.records]) == 0.25
    assert sparse.task.style.endswith("choosing version 2, multiple_choice, 0 examples, no chat template")
    assert sparse.first_input == by_task[0][1].first_input == "{context} {question}".format(**first_document(choosing))
    assert {record.item.group for record in sparse.records} == {line["context"] for line in documents(choosing)[:5]}
    assert sparse.journal.meter.total().long_kept < sparse.journal.meter.total().long_visible
    assert [record.dense for record in sparse.records] == [record.dense for record in dense.records]
    [line, *_] = prediction_lines(sparse)
    assert line["gold"] == [first_document(choosing)["answer"]]
    assert set(line["dense"]) == {"answer", "log_likelihoods", "margin", "acc,none", "acc_norm,none"}
    written = by_task[1][0]
    assert (written.task.max_new_tokens, written.task.primary) == (6, "exact_match,none")
    assert set(prediction_lines(written)[0]["patched"]) == {"answer", "exact_match,none"}


def test_both_arms_get_the_same_examples(models: dict[str, LoadedModel], tmp_path: Path) -> None:
    """The harness goes on drawing where it was, so that a second run has other examples."""
    task = save_task(tmp_path, "choosing", fewshot_split="validation")
    [found] = run(models["llama"], task, k=400, shots=2)
    assert found.task.style.count("2 examples") == 1
    assert found.first_input.count("Where is") == 3
    assert all(record.dense["answer"] == record.patched["answer"] for record in found.records)
    [other] = run(models["llama"], task, k=400, shots=2, seed=1)
    assert [record.input_hash for record in other.records] != [record.input_hash for record in found.records]


def test_sampled_answers_are_drawn_alike(models: dict[str, LoadedModel], tmp_path: Path) -> None:
    sampling = {"until": ["."], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    task = save_writing_task(tmp_path, generation_kwargs=sampling)
    [found], [again] = (run(models["llama"], task, k=400) for _ in range(2))
    assert all(record.same_answer for record in found.records)
    assert [record.dense for record in again.records] == [record.dense for record in found.records]


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_continuations(family: str, models: dict[str, LoadedModel], tmp_path: Path) -> None:
    """Whether the right word is the most likely one, as LAMBADA asks."""
    said = {"output_type": "loglikelihood", "doc_to_choice": None, "doc_to_target": "answer"}
    task = save_task(tmp_path, "task", metric_list=[{"metric": "perplexity"}, {"metric": "acc"}], **said)
    [found] = run(models[family], task)
    assert (found.task.metrics, found.task.primary) == ({"acc,none": "acc"}, "acc,none")
    assert found.task.chance([record.item for record in found.records]) == 0
    for record in found.records:
        assert found.task.score(record, "dense") == {"acc,none": float(record.dense["answer"])}


def test_filters_become_metrics(models: dict[str, LoadedModel], tmp_path: Path) -> None:
    filters = [
        {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
        for name, pattern in (("strict", r"^(\S+)$"), ("loose", r"(\S+)"))
    ]
    [found] = run(models["llama"], save_writing_task(tmp_path, filter_list=filters))
    names = {f"exact_match,{name}": f"exact_match ({name})" for name in ("strict", "loose")}
    assert found.task.metrics == names
    assert found.task.primary == "exact_match,strict"


def test_nothing_is_left_behind(models: dict[str, LoadedModel], tmp_path: Path) -> None:
    import datasets
    import evaluate
    import lm_eval.utils

    loaded = models["t5"]
    loaded.model.encoder.train()
    loaded.tokenizer.padding_side = "left"
    modes = [module.training for module in loaded.model.modules()]
    weights = {name: (value, value.clone()) for name, value in loaded.model.state_dict(keep_vars=True).items()}
    shared = (
        evaluate.load,
        lm_eval.utils.env,
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS,
        logging.getLogger("lm_eval").level,
    )
    random.random(), numpy.random.rand(), torch.rand(1)  # not what a seed gives
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    try:
        run(loaded, f"{save_task(tmp_path, 'choosing')},{save_writing_task(tmp_path)}")
        assert [module.training for module in loaded.model.modules()] == modes
        assert loaded.tokenizer.padding_side == "left"
    finally:
        loaded.model.eval()
        loaded.tokenizer.padding_side = "right"
    assert (random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert shared == (
        *(evaluate.load, lm_eval.utils.env, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS),
        logging.getLogger("lm_eval").level,
    )
    assert not hasattr(loaded.model, MODEL_ATTRIBUTE)
    assert "tie_weights" not in vars(loaded.model)
    for name, value in loaded.model.state_dict(keep_vars=True).items():
        assert value is weights[name][0]
        assert torch.equal(value, weights[name][1])


def test_an_error_of_the_model_is_not_called_one_of_the_task(
    models: dict[str, LoadedModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = models["llama"]

    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("CUDA error")

    monkeypatch.setattr(loaded.model, "forward", broken)
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(loaded, save_task(tmp_path, "choosing"))
    assert not hasattr(loaded.model, MODEL_ATTRIBUTE)


def test_long_prompts_are_cut_and_said(
    models: dict[str, LoadedModel], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = save_task(tmp_path, "choosing", doc_to_text="{{context}} {{context}} {{context}} {{context}} {{question}}")
    run(models["gpt2"], task)
    assert "28 requests of choosing are longer than the 96 tokens" in caplog.text
