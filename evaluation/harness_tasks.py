"""Finding the tasks of lm-evaluation-harness that a person names, and refusing files that would run code."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from ..errors import DataError, SparsifyError, UsageError
from .datasets.base import Dataset
from .items import ItemSet
from .tasks.harness import MULTIPLE_CHOICE, PASSAGES, Document

logger = logging.getLogger(__name__)

MISSING = "--harness needs lm-evaluation-harness: pip install 'hf-sparsify[lm-eval]'"
YAML_ENDINGS = (".yaml", ".yml")
STANDARD_TAG, PYTHON_TAG = "tag:yaml.org,2002:", ":python/"
# Readers of `datasets` that only parse; others may import or unpickle what a file names.
READERS = ("json", "csv", "parquet", "text", "arrow")
DEFAULT_NEW_TOKENS = 256  # of the harness


@dataclass(frozen=True)
class Asked:
    """A task of the harness and the documents that are asked. shots: answered examples before each."""

    name: str
    task: Any
    items: ItemSet
    limit: int | None
    shots: int

    @property
    def output_type(self) -> str:
        return str(self.task.OUTPUT_TYPE)

    @property
    def max_new_tokens(self) -> int:
        """The longest answer, where the task has answers."""
        given = getattr(self.task.config, "generation_kwargs", None) or {}
        return int(given.get("max_gen_toks") or given.get("max_new_tokens") or DEFAULT_NEW_TOKENS)


@dataclass(frozen=True)
class Named:
    """What a person named: a file with what it says, or the name of one of the harness's own tasks, groups or tags."""

    name: str
    file: Path | None
    config: dict[str, Any]

    @property
    def needs_hub(self) -> bool:
        """Whether its data may be on the Hub or behind another address."""
        path, arguments = str(self.config.get("dataset_path", "")), json.dumps(self.config, default=str)
        return self.file is None or "://" in arguments or not (path in READERS or Path(path).exists())


def named_tasks(text: str, trusted: bool) -> list[Named]:
    """The tasks of `--harness`. UsageError for what names none, and for files that run code unless they are trusted."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError("--harness is empty: give names of tasks or YAML files, with commas between them")
    return [_named(name, trusted) for name in names]


def load_tasks(named: Sequence[Named], shots: int, limit: int | None) -> list[Asked]:
    """The tasks with their documents; a group's name stands for all its tasks. shots: 0 is what each task says itself.

    UsageError for unknown names and tasks that cannot be asked here, DataError if a task or its data cannot be read.
    """
    from lm_eval.tasks import TaskManager

    # Reading all of the harness's own files takes seconds.
    manager = TaskManager(include_defaults=any(entry.file is None for entry in named))
    found: dict[str, Asked] = {}
    for entry in named:
        for name, task in _load(manager, entry).items():
            if name in found:
                raise UsageError(f"--harness names the task {name} twice, the second time with {entry.name}")
            found[name] = _asked(name, task, shots, limit)
    return list(found.values())


def _named(name: str, trusted: bool) -> Named:
    path = Path(name).expanduser()
    if not path.is_file():
        if path.suffix in YAML_ENDINGS or "/" in name:
            raise UsageError(f"--harness {name}: there is no such file")
        return Named(name, None, {})
    config = _read(path, trusted)
    if "task" not in config or not isinstance(config["task"], str):
        what = "a group of tasks: name its tasks" if "group" in config else "not a task: it has no line 'task: NAME'"
        raise UsageError(f"--harness {name}: that is {what}")
    if not trusted:
        _refuse_readers(name, config)
    return Named(name, path.resolve(), config)


def _read(path: Path, trusted: bool) -> dict[str, Any]:
    """What a task's file and those that it includes say, without running anything."""
    from lm_eval.tasks._yaml_loader import load_yaml

    try:
        if not trusted:
            for file in _with_included(path):
                _refuse_tags(file)
        return load_yaml(path, resolve_func=False)
    except UsageError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"--harness {path}: it cannot be read as a task: {_first_line(error)}") from error


def _with_included(path: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """A file and what it includes. It is refused before what it includes is looked for."""
    from lm_eval.tasks._yaml_loader import load_yaml

    yield path
    included = load_yaml(path, resolve_func=False, recursive=False).get("include") or []
    for name in included if isinstance(included, list) else [included]:
        file = (path.parent / name).resolve()
        if file not in seen:
            yield from _with_included(file, seen | {file})


def _refuse_tags(path: Path) -> None:
    for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!" and (not tag.startswith(STANDARD_TAG) or PYTHON_TAG in tag):
            raise UsageError(
                f"--harness {path}: it names Python code to run ({tag} {getattr(event, 'value', '')}): read that code, "
                "then pass --trust-remote-code to run it"
            )


def _refuse_readers(name: str, config: dict[str, Any]) -> None:
    reader = str(config.get("dataset_path", ""))
    runs_code = reader.isidentifier() and reader not in READERS and _is_reader(reader)
    if runs_code or (config.get("dataset_kwargs") or {}).get("trust_remote_code"):
        what = f"dataset_path {reader}" if runs_code else "trust_remote_code"
        raise UsageError(
            f"--harness {name}: its {what} may run code that comes with the data: look at the data, then pass "
            "--trust-remote-code"
        )


def _is_reader(name: str) -> bool:
    """Whether `datasets` has a reader of that name."""
    return importlib.util.find_spec(f"datasets.packaged_modules.{name}") is not None


def _load(manager: Any, entry: Named) -> dict[str, Any]:
    """{name: task} of what was named."""
    name = entry.name
    if entry.file is None and name not in manager.all_tasks:
        close = get_close_matches(name, manager.all_tasks)
        hint = f"; there is {', '.join(close)}" if close else ": the harness lists its tasks with `lm-eval ls tasks`"
        raise UsageError(f"--harness {name}: there is no such task and no such file{hint}")
    try:
        loaded: dict[str, Any] = manager.load([str(entry.file or name)])["tasks"]
    except SparsifyError:
        raise
    except Exception as error:
        # `datasets` and the harness raise what their many readers raise.
        raise DataError(_why(entry, error)) from error
    for task_name, task in loaded.items():
        _check(task_name, task)
    return loaded


def _check(name: str, task: Any) -> None:
    """UsageError for a task that cannot be asked here."""
    if getattr(task, "UNSAFE_CODE", False):
        raise UsageError(f"--harness {name}: it runs the code that models write, which is not done here")
    if getattr(task, "MULTIMODAL", False):
        raise UsageError(f"--harness {name}: it asks about images or sound, and only text is supported here")


def _asked(name: str, task: Any, shots: int, limit: int | None) -> Asked:
    own = task.get_config("num_fewshot")
    if shots and own == 0:
        logger.warning("warning: the task %s is made for 0 examples: --shots %d does not change it", name, shots)
    shots = shots if shots and own != 0 else own or 0
    task.set_config("num_fewshot", shots)
    try:
        documents = tuple(_document(task, place, doc) for place, doc in task.doc_iterator(limit=limit))
    except Exception as error:  # from a template or from the task's own code
        raise DataError(f"--harness {name}: its documents cannot be read: {_first_line(error)}") from error
    split = task.config.test_split if task.has_test_docs() else task.config.validation_split
    schema = Dataset(f"harness:{name}", "", "harness", "", _not_ours, _not_ours)
    return Asked(name, task, ItemSet(name, split or "", documents, _fingerprint(task, documents), schema), limit, shots)


def _document(task: Any, place: int, doc: Any) -> Document:
    choices: tuple[str, ...] = ()
    if task.OUTPUT_TYPE == MULTIPLE_CHOICE and task.config.doc_to_choice is not None:
        choices = tuple(map(str, task.doc_to_choice(doc)))
    target = task.doc_to_target(doc)
    golds = target if isinstance(target, list) else [target]
    passages = [doc[name] for name in PASSAGES if isinstance(doc.get(name), str) and doc[name]]
    text = json.dumps(doc, ensure_ascii=False, sort_keys=True, default=str)
    return Document(str(place), text, tuple(_words(gold, choices) for gold in golds), choices, "".join(passages[:1]))


def _words(gold: Any, choices: Sequence[str]) -> str:
    """A right answer, which may be the place of a choice."""
    return choices[gold] if isinstance(gold, int) and 0 <= gold < len(choices) else str(gold)


def _fingerprint(task: Any, documents: Sequence[Document]) -> str:
    """SHA-256, in hex, over how the task asks and the documents that are asked."""
    content = [task.dump_config(), [[document.id, *document.content()] for document in documents]]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _not_ours(*arguments: Any) -> Any:
    raise NotImplementedError("the harness reads its documents and makes its prompts itself")


def _why(entry: Named, error: Exception) -> str:
    if isinstance(error, ConnectionError) or (entry.needs_hub and isinstance(error, FileNotFoundError)):
        return (
            f"--harness {entry.name}: its data are not on this machine and the Hugging Face Hub cannot be reached or "
            "does not have them: run the command once where there is a connection, then it works without"
        )
    if isinstance(error, FileNotFoundError):
        hint = "paths in a task count from the working directory"
        return f"--harness {entry.name}: its data are missing ({hint}): {_first_line(error)}"
    return f"--harness {entry.name}: the task cannot be loaded: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
