"""The data sets that are known by name; a record of an unnamed one is recognised by its fields."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from .arc import ARC_CHALLENGE, ARC_EASY, COMMONSENSE_QA, OPENBOOKQA
from .base import ANSWERS, CHOICES, LABELS, SPEECH, TEXT, Dataset
from .boolq import BOOLQ
from .glue import GLUE
from .hellaswag import HELLASWAG
from .labels import ANY_LABELS
from .speech import ANY_SPEECH, LIBRISPEECH
from .squad import SQUAD, SQUAD_V2
from .text import PLAIN_TEXT, WIKITEXT

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *(SQUAD, SQUAD_V2),
        *(ARC_EASY, ARC_CHALLENGE, OPENBOOKQA, COMMONSENSE_QA, HELLASWAG, BOOLQ),
        *(LIBRISPEECH, ANY_SPEECH),
        *(*GLUE, ANY_LABELS),
        *(WIKITEXT, PLAIN_TEXT),
    )
}

TASKS = {
    ANSWERS: "question answering",
    CHOICES: "multiple choice",
    LABELS: "text classification",
    TEXT: "plain text",
    SPEECH: "speech recognition",
}
# What a person calls these: eval --task.
NAMES = {"qa": ANSWERS, "multiple-choice": CHOICES, "classification": LABELS, "text": TEXT, "asr": SPEECH}
METRICS = {
    "f1": "F1",
    "accuracy": "accuracy",
    "accuracy_norm": "accuracy (norm.)",
    "top1_agreement": "top-1 agreement",
    "word_accuracy": "word accuracy",
}


def kind_named(task: str | None) -> str | None:
    """What a data set for a task has (ANSWERS ... SPEECH); None for None. UsageError for another name."""
    if task is not None and task not in NAMES:
        raise UsageError(f"--task {task}: there are {', '.join(NAMES)}; what fits model and data is found without it")
    return None if task is None else NAMES[task]


def require_kind(name: str, dataset: Dataset, kind: str | None) -> None:
    """UsageError if a data set, called `name`, is not for what was asked for. kind: see kind_named."""
    if kind not in (None, dataset.task):
        asked = next(task for task, its in NAMES.items() if its == kind)
        raise UsageError(
            f"{name} is for {TASKS[dataset.task]}, and --task {asked} asks for {TASKS[kind]}: name other data with "
            "--dataset, or leave --task out"
        )


def dataset_of(record: Any) -> Dataset | None:
    """The data set with the most fields of those whose fields a record has, the first of several; None without one."""
    if not isinstance(record, dict):
        return None
    fitting = [dataset for dataset in DATASETS.values() if dataset.fields and dataset.fields <= record.keys()]
    return max(fitting, key=lambda dataset: len(dataset.fields), default=None)


def nearest_dataset(record: dict[str, Any]) -> Dataset | None:
    """The data set that a record with fields missing seems to be meant for; None if it could be anything."""

    def shared(dataset: Dataset) -> int:
        return len(dataset.fields & record.keys())

    nearest = max(DATASETS.values(), key=shared)
    return nearest if shared(nearest) > 1 or "question" in record else None


def datasets_rows() -> list[tuple[str, str, str, str, str]]:
    """Name, task, metric, name on the Hub and summary of everything that has a name."""
    demo = ("demo", TASKS[ANSWERS], METRICS["f1"], "", "made-up stories, inside the package")
    return [demo, *(_row(dataset) for dataset in DATASETS.values())]


def _row(dataset: Dataset) -> tuple[str, str, str, str, str]:
    hub = f"{dataset.hub} ({dataset.config})" if dataset.config else dataset.hub
    return dataset.name, TASKS[dataset.task], METRICS[dataset.metric], hub, dataset.summary
