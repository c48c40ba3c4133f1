"""The console command itself: how arguments are read, and how errors become exit codes."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from command_line import Sparsify, runner
from hf_sparsify import cli
from hf_sparsify.errors import (
    DataError,
    NotPatchableError,
    RecipeMismatchError,
    SparsifyError,
    UnsupportedAttentionArgument,
    UsageError,
)
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.terminal import exit_codes, progress, resumable


@pytest.fixture
def sparsify(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Sparsify:
    return runner(capsys, monkeypatch)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--batch_size", "4"], ["--batch-size", "4"]),
        (["--skip_layers=0"], ["--skip-layers=0"]),
        (["--output_dir=a_b"], ["--output-dir=a_b"]),
        (["my_model", "-o", "a_b"], ["my_model", "-o", "a_b"]),
        (["--max-new-tokens", "4"], ["--max-new-tokens", "4"]),
    ],
)
def test_underscores_in_option_names(typed: list[str], meant: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    monkeypatch.setattr(cli, "app", lambda args: given.extend(args))
    monkeypatch.setattr(sys, "argv", ["sparsify", *typed])
    cli.main()
    assert given == meant


def test_unknown_options_and_commands(sparsify: Sparsify) -> None:
    assert sparsify("patch", "llama", "--colour", "red").code == 2
    assert sparsify("ptach").code == 2
    assert sparsify("patch").code == 2
    assert sparsify("patch", "llama", "--k", "four").code == 2


def test_version(sparsify: Sparsify) -> None:
    done = sparsify("--version")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("hf-sparsify ")


def test_methods(sparsify: Sparsify) -> None:
    done = sparsify("methods")
    assert (done.code, done.err) == (0, "")
    assert all(text in done.out for text in ("top-k", "top-theta", "arXiv 2106.06899", "arXiv 2502.08363"))


def test_datasets(sparsify: Sparsify) -> None:
    done = sparsify("datasets")
    assert (done.code, done.err) == (0, "")
    assert done.out.splitlines()[0].split() == ["name", "task", "metric", "on", "the", "Hub", "what", "it", "is"]
    names = [line.split()[0] for line in done.out.splitlines()[2:] if line[:1].strip()]
    assert names == ["demo", *DATASETS]


def test_env(sparsify: Sparsify) -> None:
    done = sparsify("env")
    assert (done.code, done.err) == (0, "")
    assert {"python", "hf-sparsify", "torch", "transformers"} <= {line.split(": ")[0] for line in done.out.splitlines()}


def failing(error: BaseException) -> Any:
    @exit_codes
    def command() -> None:
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SparsifyError("it broke"), 1),
        (DataError("it broke"), 1),
        (UsageError("it broke"), 2),
        (NotPatchableError("it broke"), 4),
        (RecipeMismatchError("it broke"), 4),
        (UnsupportedAttentionArgument("it broke"), 4),
    ],
)
def test_exit_codes(error: SparsifyError, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        failing(error)()
    assert caught.value.code == code
    assert capsys.readouterr() == ("", "error: it broke\n")


def test_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        failing(KeyboardInterrupt())()
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "interrupted; nothing half-written was left behind\n")


def test_ctrl_c_in_what_can_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    @exit_codes
    def command() -> None:
        with resumable():
            raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        command()
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "interrupted; the same command goes on from here\n")


def test_the_traceback_can_be_asked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_DEBUG", "1")
    with pytest.raises(SystemExit) as caught:
        failing(UsageError("it broke"))()
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert printed.endswith("error: it broke\n")


def test_out_of_memory_says_what_to_lower(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        failing(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"))()
    assert caught.value.code == 1
    assert "lower --batch-size" in capsys.readouterr().err


def test_errors_that_are_not_ours_keep_their_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        failing(ZeroDivisionError())()


def test_progress_without_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with progress(40, "counting") as advance:
        for _ in range(40):
            advance(1)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"counting: {done} of 40" for done in range(4, 41, 4)]
    for n, done in enumerate(range(4, 41, 4)):
        left = lines[n].split(", ")[1]
        assert re.fullmatch(r"about \d+ s left" if done < 40 else r"\d+ s", left)
    with progress(41, "counting", processes=2) as advance:
        advance(21)
    assert capsys.readouterr().err == "counting, process 1 of 2: 21 of 21, 0 s\n"
    monkeypatch.setenv("RANK", "1")
    with progress(41, "counting", processes=2) as advance:
        advance(21)
    assert capsys.readouterr().err == "", "the first process speaks for all"
    monkeypatch.delenv("RANK")
    with progress(40, "counting", quiet=True) as advance:
        advance(40)
    assert capsys.readouterr().err == ""
