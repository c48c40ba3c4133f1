"""Which utterances examples/train_ctc.py learns from, at which rates, and where it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

with pytest.MonkeyPatch.context() as paths:
    paths.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    import train_ctc

SMALL = ("--batch", "2", "--layers", "1", "--validation", "0", "--output", "speech")


class Training:
    """Runs the script with a loss that costs nothing. texts and rates: of the last run, by utterance and by step."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.texts: list[str] = []
        self.rates: list[float] = []
        monkeypatch.setattr(train_ctc, "losses", self.losses)
        training = self

        class Observed(torch.optim.AdamW):
            def step(self, closure: Any = None) -> None:
                training.rates.append(self.param_groups[0]["lr"])

        monkeypatch.setattr(train_ctc.torch.optim, "AdamW", Observed)

    def losses(self, model: Any, processor: Any, batch: list[Any]) -> tuple[Tensor, Tensor]:
        self.texts += [utterance.text for utterance in batch]
        loss = model.lm_head.bias.sum()
        return loss, loss

    def run(self, *options: str) -> list[str]:
        self.texts, self.rates = [], []
        self.monkeypatch.setattr(sys, "argv", ["train_ctc.py", *SMALL, *options])
        train_ctc.main()
        return self.texts


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Training:
    monkeypatch.chdir(tmp_path)
    return Training(monkeypatch)


def test_a_resumed_training_sees_new_utterances(training: Training) -> None:
    first = training.run("--steps", "3")
    second = training.run("--steps", "3", "--resume")
    third = training.run("--steps", "3", "--resume")
    assert len(first) == len(second) == len(third) == 6
    assert len({*first, *second, *third}) == 18
    assert json.loads(Path("speech/model/config.json").read_text())["trained_steps"] == 9


def test_the_seed_says_which_utterances(training: Training) -> None:
    first = training.run("--steps", "2")
    assert training.run("--steps", "2", "--seed", "0") == first
    assert training.run("--steps", "2", "--seed", "0", "--resume") == first
    assert training.run("--steps", "2", "--seed", "1", "--resume") != first


def test_stopped_early_it_is_the_beginning_of_all_steps(training: Training) -> None:
    whole, rates = training.run("--steps", "6"), training.rates
    assert training.run("--steps", "6", "--stop-after", "2") == whole[:4]
    assert training.rates == rates[:2]
    assert json.loads(Path("speech/model/config.json").read_text())["trained_steps"] == 2
    training.run("--steps", "2")
    assert training.rates != rates[:2], "whose rate falls sooner"
