"""Tasks of lm-evaluation-harness on the dense and on the patched models. It needs the extra lm-eval.

The harness asks and scores through its own code; here its results become evaluations like those of our own tasks.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy
import torch

from ..errors import DataError, SparsifyError, UsageError
from ..hub import hub_answers
from ..patcher.binding.loading import LoadedModel
from ..patcher.binding.patching import Patch, prepare_patch
from ..patcher.meter import Meter
from ..patcher.outputs import finite_outputs
from .harness_tasks import MISSING, Asked, load_tasks, named_tasks
from .journal import Journal
from .run import Contender, Evaluation
from .tasks.base import TaskOptions
from .tasks.harness import HarnessTask, Results

logger = logging.getLogger(__name__)

MODEL_TASKS = ("causal-lm", "seq2seq-lm")


@dataclass(frozen=True)
class Harness:
    """Tasks of the harness, ready for a model. trusted: code that comes with tasks may run."""

    tasks: tuple[Asked, ...]
    seed: int
    trusted: bool
    online: bool

    @classmethod
    def open(
        cls, names: str, *, shots: int = 0, limit: int | None = None, seed: int = 0, trusted: bool = False
    ) -> Harness:
        """The named tasks: the harness's own, or YAML files. limit: of each task only so many documents, the first.

        shots: answered examples before each document; 0 is what each task says itself. UsageError if the harness is not
        installed, and what named_tasks and load_tasks raise.
        """
        if importlib.util.find_spec("lm_eval") is None:
            raise UsageError(MISSING)
        named = named_tasks(names, trusted)
        online = (trusted or any(entry.needs_hub for entry in named)) and hub_answers()  # metrics may be there, too
        with _aside(seed, trusted, online):
            return cls(tuple(load_tasks(named, shots, limit)), seed, trusted, online)

    def total(self, contenders: int) -> int:
        """How many documents are asked of all models together."""
        return sum(len(asked.items) for asked in self.tasks) * (1 + contenders)

    def task_for(self, loaded: LoadedModel, asked: Asked, batch_size: int) -> HarnessTask:
        """One of the tasks for a model. UsageError for a model that writes no text."""
        if loaded.base.task not in MODEL_TASKS:
            raise UsageError(
                f"{loaded.base.id} ({loaded.base.task}) cannot be asked by the harness: its tasks need a model for "
                f"{' or '.join(MODEL_TASKS)}"
            )
        style = (
            f"lm-evaluation-harness {version('lm_eval')}, {asked.name} version {asked.task.VERSION}, "
            f"{asked.output_type}, {asked.shots} examples, no chat template"
        )
        options = TaskOptions(batch_size=batch_size, max_new_tokens=asked.max_new_tokens)
        return HarnessTask(loaded, asked.items, options, asked.output_type, style)

    def evaluate(
        self,
        loaded: LoadedModel,
        contenders: Sequence[Contender],
        *,
        batch_size: int = 8,
        advance: Callable[[int], None] | None = None,
    ) -> list[list[Evaluation]]:
        """For each task the evaluation of every contender, whose journals are not used. The dense model runs once.

        advance: called with the number of documents done. The model must not be patched, and is left dense and as it
        was. UsageError for a task without a score for each document, DataError if a task cannot be run.
        """
        tasks = [self.task_for(loaded, asked, batch_size) for asked in self.tasks]
        patches = [prepare_patch(loaded.model, contender.plan, contender.thresholds) for contender in contenders]
        with _aside(self.seed, self.trusted, self.online), _harness_model(loaded, batch_size, advance) as lm:
            found = [self._evaluate(lm, asked, task, patches) for asked, task in zip(self.tasks, tasks, strict=True)]
        for patch in patches:
            patch.log_paths()
        return found

    def _evaluate(self, lm: Any, asked: Asked, task: HarnessTask, patches: Sequence[Patch]) -> list[Evaluation]:
        with finite_outputs(lm.model):
            dense = self._run(lm, asked, None)
        dense_seconds = lm.seconds
        task.settle([dense])
        if lm.cut:
            logger.warning(
                "warning: %d requests of %s are longer than the %d tokens that the model reads: the harness leaves out "
                "their beginning",
                lm.cut,
                asked.name,
                lm.max_length,
            )
        arms, journals = [], []
        for patch in patches:
            meter = Meter()
            with patch.resumed(), patch.metered(meter), finite_outputs(lm.model, patched=True):
                arms.append(self._run(lm, asked, meter))
            journals.append((meter, {"dense": dense_seconds, "patched": lm.seconds}))
        task.settle([dense, *arms])
        evaluations = []
        for arm, (meter, seconds) in zip(arms, journals, strict=True):
            records, journal = task.compare_arms(dense, arm), Journal()
            journal.append(0, records, meter, seconds, cached=0, rank=0)
            evaluations.append(Evaluation(task, task.first_prompt, records, Counter(), journal))
        return evaluations

    def _run(self, lm: Any, asked: Asked, meter: Meter | None) -> Results:
        """What the harness says of the model as it is now."""
        from lm_eval.evaluator import evaluate

        lm.begin(meter, len(asked.items))
        # Before each arm: the draw of examples goes on where it was, and both are to be asked the same.
        asked.task.set_fewshot_seed(self.seed)
        _seed(self.seed)
        try:
            return evaluate(lm, {"tasks": {asked.name: asked.task}}, limit=asked.limit, bootstrap_iters=0) or {}
        except SparsifyError:
            raise
        except Exception as error:
            if lm.in_model:
                raise
            first = next(iter(str(error).strip().splitlines()), "")
            raise DataError(
                f"--harness {asked.name}: the task cannot be run: {type(error).__name__}: {first}"
            ) from error


@contextmanager
def _harness_model(loaded: LoadedModel, batch_size: int, advance: Callable[[int], None] | None) -> Iterator[Any]:
    """The model as the harness asks it; afterwards model and tokenizer are as they were."""
    from .harness_model import HarnessModel

    model, tokenizer = loaded.model, loaded.tokenizer
    if tokenizer.eos_token_id is None:
        raise UsageError(f"the tokenizer of {loaded.base.id} has no end token, which the harness needs: give it one")
    training = [module for module in model.modules() if module.training]
    with ExitStack() as stack:
        for name in ("pad_token", "padding_side"):
            stack.callback(setattr, tokenizer, name, getattr(tokenizer, name))
        for module in training:
            stack.callback(setattr, module, "training", True)
        with _set(model, tie_weights=lambda: None):  # they are as they should be
            lm = HarnessModel(loaded, batch_size, advance)
        yield lm


@contextmanager
def _aside(seed: int, trusted: bool, online: bool) -> Iterator[None]:
    """The harness inside the block: silent unless libraries may speak, with random numbers of its own, and without
    running code from files or from the Hub unless it is trusted."""
    import datasets
    import evaluate
    import lm_eval.api.model
    import lm_eval.api.task
    import lm_eval.models.huggingface
    import lm_eval.utils

    silent = not logging.getLogger().isEnabledFor(logging.INFO)
    harness_logger = logging.getLogger("lm_eval")
    with ExitStack() as stack:
        stack.enter_context(_own_random_numbers(seed))
        # Counting what is loaded, even files, would ask the Hub each time.
        offline = {} if online else {"HF_HUB_OFFLINE": True}
        stack.enter_context(_set(datasets.config, HF_UPDATE_DOWNLOAD_COUNTS=False, **offline))
        if not trusted:
            stack.enter_context(_no_foreign_metrics(evaluate))
            stack.enter_context(_set(lm_eval.utils, env=_sandbox(lm_eval.utils.env)))
        if silent:
            stack.callback(harness_logger.setLevel, harness_logger.level)
            harness_logger.setLevel(logging.CRITICAL)
            for module in (lm_eval.api.model, lm_eval.api.task, lm_eval.models.huggingface):
                stack.enter_context(_set(module, tqdm=functools.partial(module.tqdm, disable=True)))
            if datasets.is_progress_bar_enabled():
                datasets.disable_progress_bars()
                stack.callback(datasets.enable_progress_bars)
        yield


@contextmanager
def _no_foreign_metrics(evaluate: Any) -> Iterator[None]:
    """UsageError at the end of the block if the library `evaluate` was to load a metric: that is code."""
    wanted: list[str] = []

    def refuse(name: str, *arguments: Any, **options: Any) -> Any:
        wanted.append(name)  # the harness swallows what is raised here, and fails later for another reason
        raise ImportError(f"the metric {name} is code from the Hub or from a file")

    try:
        with _set(evaluate, load=refuse):
            yield
    finally:
        if wanted:
            raise UsageError(
                f"--harness: a task uses {wanted[0]}, no metric of the harness but code from the Hub or from a file: "
                "read that code, then pass --trust-remote-code to run it"
            )


def _sandbox(environment: Any) -> Any:
    """The same templates without access to Python's internals."""
    from jinja2.sandbox import SandboxedEnvironment

    made = SandboxedEnvironment(
        loader=environment.loader,
        undefined=environment.undefined,
        keep_trailing_newline=environment.keep_trailing_newline,
    )
    made.filters.update(environment.filters)
    return made


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Seeds all generators inside the block; afterwards they go on as if nothing had happened."""
    states = random.getstate(), numpy.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            _seed(seed)
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])


def _seed(seed: int) -> None:
    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def _set(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of an object for the length of the block."""
    before: Mapping[str, Any] = {name: vars(owner)[name] for name in values if name in vars(owner)}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name in values:
            if name in before:
                setattr(owner, name, before[name])
            else:
                delattr(owner, name)
