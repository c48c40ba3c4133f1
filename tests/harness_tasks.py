"""Tasks of lm-evaluation-harness in local files: a YAML file and its documents, on the passages of the tiny models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny_language_models
from both_arms import plan_for
from hf_sparsify.evaluation.harness import Harness
from hf_sparsify.evaluation.run import Contender, Evaluation
from hf_sparsify.patcher.binding.loading import LoadedModel
from hf_sparsify.patcher.methods import TopK

PROMPT = "{{context}} {{question}}"


def save_documents(file: Path, count: int) -> Path:
    """Questions with four choices, of one to three tokens, and a written answer, as JSON Lines."""
    lines = []
    for number, record in enumerate(tiny_language_models.records(count)):
        [answer] = record["answers"]
        others = [place for place in tiny_language_models.PLACES if place != answer]
        choices = [" ".join([others[(number + place) % len(others)]] * (1 + place)) for place in range(3)]
        gold = number % 4
        choices.insert(gold, answer)
        asked = {"context": record["context"], "question": record["question"]}
        lines.append(json.dumps({**asked, "choices": choices, "gold": gold, "answer": answer}) + "\n")
    file.write_text("".join(lines), encoding="utf-8")
    return file


def save_task(folder: Path, name: str, count: int = 7, **changes: Any) -> Path:
    """A task for choosing, or for writing if `changes` say output_type generate_until; they go into the YAML file."""
    documents = save_documents(folder / f"{name}.jsonl", count)
    said: dict[str, Any] = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(documents)}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": PROMPT,
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}, {"metric": "mcc"}],
        "metadata": {"version": 2},
    }
    if changes.get("output_type") == "generate_until":
        del said["doc_to_choice"]
        said |= {
            "doc_to_target": "answer",
            "generation_kwargs": {"until": ["."], "max_gen_toks": 6, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        }
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({**said, **changes}), encoding="utf-8")  # JSON is YAML
    return file


def save_writing_task(folder: Path, name: str = "writing", count: int = 7, **changes: Any) -> Path:
    """A task whose answers are written."""
    return save_task(folder, name, count, output_type="generate_until", **changes)


def run(loaded: LoadedModel, tasks: str | Path, k: int = 3, batch_size: int = 4, **options: Any) -> list[Evaluation]:
    """One recipe on every task."""
    harness = Harness.open(str(tasks), **options)
    contenders = [Contender(plan_for(loaded, TopK(k=k)))]
    return [found for [found] in harness.evaluate(loaded, contenders, batch_size=batch_size)]


def documents(task: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in task.with_suffix(".jsonl").read_text().splitlines()]


def first_document(task: Path) -> dict[str, Any]:
    return documents(task)[0]
