"""A working directory with tiny models and questions, and the console command."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

import fake_hub
import pytest
import tiny_language_models
from command_line import Sparsify, runner
from sweep_commands import Asked
from transformers.utils import logging as transformers_logging


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    own_attention = ("gpt-neo", "mpnet", "longt5", "yoso")
    for name in ("llama", "t5", "gpt2", "bart", "bert", "bert-qa", "roberta-qa", "bart-qa", *own_attention):
        tiny_language_models.save(name, folder / name)
    tiny_language_models.save("llama", folder / "chat", chat=True)
    tiny_language_models.save("llama", folder / "other", num_hidden_layers=3)
    tiny_language_models.save_slow_tokenizer(tiny_language_models.save("bert-qa", folder / "slow-qa"))
    return folder


@pytest.fixture(autouse=True)
def work(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory but for questions and links to the models; library logging is put back after."""
    folder = tmp_path / "work"
    folder.mkdir()
    for model in models.iterdir():
        (folder / model.name).symlink_to(model)
    tiny_language_models.save_questions(folder / "q.jsonl", 6)
    tiny_language_models.save_questions(folder / "train.jsonl", 6, people=7)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def quiet_libraries() -> Iterator[None]:
    verbosity, handlers = transformers_logging.get_verbosity(), logging.getLogger().handlers[:]
    with warnings.catch_warnings():
        yield
    transformers_logging.set_verbosity(verbosity)
    logging.getLogger().handlers[:] = handlers


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What the cells of a sweep are asked, and which one fails."""
    return Asked(monkeypatch)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.FakeHub]:
    """The Hub as a server on this machine, for a person who is logged in; nothing was downloaded yet."""
    with fake_hub.running() as made:
        fake_hub.use(made, tmp_path / "home", monkeypatch)
        yield made


@pytest.fixture
def sparsify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sparsify:
    """Runs the console command in this process."""
    return runner(capsys, monkeypatch)


@pytest.fixture
def recipe(sparsify: Sparsify, work: Path) -> Path:
    """./sparsified for the tiny Llama, and files that hold no questions."""
    assert sparsify("patch", "llama", "--k", "4", "--no-verify").code == 0
    (work / "empty.jsonl").write_text("")
    first, second = tiny_language_models.records(2)
    same = [first, {**second, "context": first["context"]}]
    (work / "one-passage.jsonl").write_text("".join(json.dumps(record) + "\n" for record in same))
    (work / "bad.jsonl").write_text(json.dumps(tiny_language_models.records(1)[0]) + "\n{oops\n")
    return work / "sparsified"


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `calibrated` is kept for the next test: it costs a calibration."""
    return tmp_path_factory.mktemp("kept") / "sparsified"


@pytest.fixture
def calibrated(sparsify: Sparsify, work: Path, kept: Path) -> Path:
    """./sparsified for the tiny Llama, calibrated at k = 4 with options of its own, and one dense FFN."""
    if kept.exists():
        return Path(shutil.copytree(kept, work / "sparsified"))
    options = ("--attention", "top-theta", "--placement", "max-relative", "--compensation", "sdc+vmc", "--no-verify")
    ffn = ("--ffn", "top-k", "--set", "re:.*1.mlp.*=none")
    assert sparsify("patch", "llama", "--k", "4", *options, *ffn).code == 0
    assert sparsify("calibrate", "-d", "q.jsonl", "--samples", "4").code == 0
    shutil.copytree(work / "sparsified", kept)
    return work / "sparsified"
