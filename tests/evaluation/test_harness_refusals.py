"""Tasks of lm-evaluation-harness that cannot be judged, are damaged, or would run code of strangers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_language_models
from harness_tasks import first_document, run, save_task
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation.harness import Harness
from hf_sparsify.patcher.binding.loading import LoadedModel, load_model

pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    return {name: load_model(str(tiny_language_models.save(name, folder / name))) for name in ("llama", "bert-qa")}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"metric_list": [{"metric": "mcc"}]}, r"none of its metrics \(mcc\) gives each document a score from 0 to 1"),
    ({"metric_list": [{"metric": "brier_score"}]}, "none of its metrics"),
    ({"group": "many", "task": ["one", "two"]}, "that is a group of tasks"),
    ({"task": None}, "not a task"),
    ({"dataset_path": "pandas"}, "its dataset_path pandas may run code"),
    ({"dataset_kwargs": {"trust_remote_code": True}}, "its trust_remote_code may run code"),
    ({"metric_list": [{"metric": "rouge", "aggregation": "mean", "higher_is_better": True}]}, "a task uses rouge"),
    ({"metric_list": [{"metric": "acc", "hf_evaluate": True}]}, "a task uses acc"),
    (
        {
            "output_type": "loglikelihood_rolling",
            "metric_list": None,
            "doc_to_choice": None,
            "doc_to_target": "context",
        },
        r"none of its metrics \(word_perplexity, byte_perplexity, bits_per_byte\)",
    ),
    ({"unsafe_code": True}, "it runs the code that models write"),
    ({"doc_to_image": "picture"}, "images"),
    (
        {"output_type": "generate_until", "generation_kwargs": {"max_gen_toks": 600}},
        "it asks for 600 new tokens, and the model reads 512",
    ),
    (
        {"output_type": "generate_until", "generation_kwargs": {"max_length": 8}},
        "max_length 8 in a task's generation_kwargs leaves no room",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), REFUSED)
def test_refused_tasks(changes: dict[str, Any], sentence: str, models: dict[str, LoadedModel], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(models["llama"], save_task(tmp_path, "task", **changes))


DAMAGED: list[tuple[dict[str, Any], str]] = [
    ({"dataset_kwargs": {"data_files": {"validation": "gone.jsonl"}}}, "its data are missing .*gone.jsonl"),
    ({"dataset_path": "nobody/nothing", "dataset_kwargs": None}, "the Hugging Face Hub cannot be reached"),
    ({"doc_to_text": "{{missing}}"}, "'missing' is undefined"),
    ({"output_type": "telepathy"}, "Got invalid output_type"),
    ({"validation_split": "dev"}, "dev"),
    ({"doc_to_text": "{{ cycler.__init__.__globals__ }}"}, "is unsafe"),
    ({"num_fewshot": 50, "fewshot_split": "validation"}, "the task cannot be run: ValueError"),
]


@pytest.mark.parametrize(("changes", "sentence"), DAMAGED)
def test_damaged_tasks(changes: dict[str, Any], sentence: str, models: dict[str, LoadedModel], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=sentence):
        run(models["llama"], save_task(tmp_path, "task", **changes))


def test_files_that_are_not_there_or_no_yaml(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no such file"):
        Harness.open(str(tmp_path / "gone.yaml"))
    (tmp_path / "bad.yaml").write_text("task: [", encoding="utf-8")
    with pytest.raises(DataError, match="it cannot be read as a task"):
        Harness.open(str(tmp_path / "bad.yaml"))
    (tmp_path / "loop.yaml").write_text("task: x\ninclude: loop.yaml", encoding="utf-8")
    with pytest.raises(DataError, match="Include cycle"):
        Harness.open(str(tmp_path / "loop.yaml"))
    with pytest.raises(UsageError, match="is empty"):
        Harness.open(" , ")


def test_a_task_named_twice(tmp_path: Path) -> None:
    first = save_task(tmp_path, "task")
    (tmp_path / "copy.yaml").write_text(first.read_text(), encoding="utf-8")
    with pytest.raises(UsageError, match=r"names the task task twice, the second time with .*copy.yaml"):
        Harness.open(f"{first},{tmp_path / 'copy.yaml'}")
    assert len(Harness.open(f"{first},{first}").tasks) == 1


@pytest.fixture
def with_code(tmp_path: Path) -> Callable[[str], Path]:
    """A task that runs the function beside it, which leaves a file behind."""

    def made(where: str) -> Path:
        mark = tmp_path / "was-run"
        code = f"open({str(mark)!r}, 'w').close()\ndef text(doc):\n    return doc['context'] + ' ' + doc['question']\n"
        (tmp_path / "code.py").write_text(code, encoding="utf-8")
        task = save_task(
            tmp_path, "task", doc_to_text="PLACE", **({"include": "base.yaml"} if where == "include" else {})
        )
        (tmp_path / "base.yaml").write_text("doc_to_text: !function code.text", encoding="utf-8")
        text = task.read_text()
        # With an include of its own the file no longer says doc_to_text.
        new = (
            text.replace('"doc_to_text": "PLACE", ', "")
            if where == "include"
            else text.replace('"PLACE"', "!function code.text")
        )
        task.write_text(new, encoding="utf-8")
        return task

    return made


@pytest.mark.parametrize("where", ["file", "include"])
def test_code_beside_a_task_runs_only_if_it_is_trusted(
    where: str, with_code: Callable[[str], Path], models: dict[str, LoadedModel], tmp_path: Path
) -> None:
    task = with_code(where)
    with pytest.raises(UsageError, match=r"names Python code to run \(!function code.text\).*--trust-remote-code"):
        Harness.open(str(task))
    assert not (tmp_path / "was-run").exists()
    [found] = run(models["llama"], task, trusted=True)
    assert (tmp_path / "was-run").exists()
    assert found.first_input == "{context} {question}".format(**first_document(task))


def test_models_that_write_no_text(models: dict[str, LoadedModel], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\(question-answering\) cannot be asked by the harness"):
        run(models["bert-qa"], save_task(tmp_path, "task"))


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_sparsify.evaluation import harness

    monkeypatch.setattr(harness.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'hf-sparsify\[lm-eval\]'"):
        Harness.open("task.yaml")
