"""The data sets that are known by name; a record of an unnamed one is recognised by its fields."""

from __future__ import annotations

from typing import Any

from ...errors import UsageError
from .arc import ARC_CHALLENGE, ARC_EASY, COMMONSENSE_QA, OPENBOOKQA
from .base import ANSWERS, CHOICES, ENCODED, LABELS, SPEECH, TEXT, Dataset
from .boolq import BOOLQ
from .glue import GLUE
from .hellaswag import HELLASWAG
from .labels import ANY_LABELS
from .narrativeqa import NARRATIVEQA
from .race import RACE
from .speech import ANY_SPEECH, LIBRISPEECH
from .squad import SQUAD, SQUAD_V2
from .text import PLAIN_TEXT, WIKITEXT
from .unifiedqa import UNIFIEDQA_FILE

DATASETS: dict[str, Dataset] = {
    dataset.name: dataset
    for dataset in (
        *(SQUAD, SQUAD_V2, NARRATIVEQA),
        *(ARC_EASY, ARC_CHALLENGE, OPENBOOKQA, COMMONSENSE_QA, HELLASWAG, BOOLQ, RACE),
        *(LIBRISPEECH, ANY_SPEECH),
        *(*GLUE, ANY_LABELS),
        UNIFIEDQA_FILE,
        *(WIKITEXT, PLAIN_TEXT),
    )
}

TASKS = {
    ANSWERS: "question answering",
    CHOICES: "multiple choice",
    ENCODED: "encoded questions",
    LABELS: "text classification",
    TEXT: "plain text",
    SPEECH: "speech recognition",
}
# What a person calls these: eval --task.
NAMES = {
    "qa": (ANSWERS, ENCODED),
    "multiple-choice": (CHOICES,),
    "classification": (LABELS,),
    "text": (TEXT,),
    "asr": (SPEECH,),
}
METRICS = {
    "f1": "F1",
    "exact_match": "EM",
    "accuracy": "accuracy",
    "accuracy_norm": "accuracy (norm.)",
    "top1_agreement": "top-1 agreement",
    "word_accuracy": "word accuracy",
}


def check_task(task: str | None) -> None:
    """UsageError for a name that is not in NAMES."""
    if task is not None and task not in NAMES:
        raise UsageError(f"--task {task}: there are {', '.join(NAMES)}; what fits model and data is found without it")


def require_task(task: str | None, name: str, dataset: Dataset) -> None:
    """UsageError if a data set, called `name`, is not for the task that was asked for. task: None for any."""
    if task is not None and dataset.task not in NAMES[task]:
        raise UsageError(
            f"{name} is for {TASKS[dataset.task]}, and --task {task} asks for {TASKS[NAMES[task][0]]}: name other data "
            "with --dataset, or leave --task out"
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
