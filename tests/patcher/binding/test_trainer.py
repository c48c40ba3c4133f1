"""A patched model in the loop of transformers.Trainer: it learns sparse, is saved dense, goes on where it stopped."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import hf_sparsify
import pytest
import torch
from command_line import runner
from hf_sparsify.evaluation.demo import demo_model_path
from hf_sparsify.patcher.binding.patching import call_paths
from hf_sparsify.patcher.methods import TopK, TopKFeedForward
from patched_models import one_layer
from tiny_models import build
from torch import nn
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, Trainer, TrainingArguments

STEPS = 4
LENGTHS = {"input_ids": 10, "labels": 3}
ATTENTION, FEED_FORWARD = TopK(k=3), TopKFeedForward(k=5)


def data() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {key: torch.randint(5, 90, (length,), generator=generator) for key, length in LENGTHS.items()}
        for _ in range(2 * STEPS)
    ]


def trainer(model: nn.Module, output: Path, **options: Any) -> Trainer:
    arguments: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_steps": 2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        **options,
    }
    return Trainer(model, TrainingArguments(str(output), **arguments), train_dataset=data())


def patched() -> Any:
    model = build("t5")
    hf_sparsify.patch(model, ATTENTION, FEED_FORWARD)
    return model


def losses(one: Trainer) -> list[float]:
    return [entry["loss"] for entry in one.state.log_history if "loss" in entry]


@torch.no_grad()
def loss_on_all(model: nn.Module) -> float:
    model.eval()
    return sum(float(model(**{key: value[None] for key, value in one.items()}).loss) for one in data())


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A patched model after all steps, with a checkpoint half-way."""
    run = trainer(patched(), tmp_path_factory.mktemp("whole"))
    run.train()
    run.save_model()
    return run


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    own, others = one.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)


def test_it_learns_sparse(whole_run: Trainer, tmp_path: Path) -> None:
    paths = call_paths(whole_run.model)
    assert paths["torch: gradients of a whole layer"] == STEPS * 4
    dense = trainer(build("t5"), tmp_path)
    dense.train()
    assert abs(losses(dense)[0] - losses(whole_run)[0]) > 1e-3
    assert loss_on_all(whole_run.model) < loss_on_all(patched())


def test_a_resumed_run_is_the_uninterrupted_one(whole_run: Trainer, tmp_path: Path) -> None:
    checkpoint = Path(whole_run.args.output_dir) / "checkpoint-2"
    resumed = trainer(patched(), tmp_path)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert losses(resumed) == losses(whole_run)
    assert same_weights(resumed.model, whole_run.model)


def test_what_is_saved_loads_as_the_dense_model(whole_run: Trainer) -> None:
    saved = Path(whole_run.args.output_dir)
    assert "hf_sparsify" not in (saved / "config.json").read_text(encoding="utf-8")
    model = AutoModelForSeq2SeqLM.from_pretrained(saved)
    assert same_weights(model, whole_run.model)
    batch = {key: value[None] for key, value in data()[0].items()}
    with torch.no_grad():
        whole_run.model.eval()
        sparse = whole_run.model(**batch).logits
        assert (model(**batch).logits - sparse).abs().max() > 1e-3
        hf_sparsify.patch(model, ATTENTION, FEED_FORWARD)
        assert torch.equal(model(**batch).logits, sparse)


def test_a_recipe_for_what_is_saved_gives_what_was_trained(
    whole_run: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(whole_run.args.output_dir, "trained")
    AutoTokenizer.from_pretrained(demo_model_path("demo-t5")).save_pretrained("trained")
    options = ["--k", "3", "--compensation", "none", "--ffn", "top-k", "--ffn-k", "5", "--no-verify"]
    assert runner(capsys, monkeypatch)("patch", "trained", *options).code == 0
    model = hf_sparsify.load("sparsified").model.eval()
    batch = {key: value[None] for key, value in data()[0].items()}
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, whole_run.model.eval()(**batch).logits)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=str,
)
def test_options_that_change_nothing(options: dict[str, Any], whole_run: Trainer, tmp_path: Path) -> None:
    run = trainer(patched(), tmp_path, **options)
    run.train()
    assert losses(run) == pytest.approx(losses(whole_run), rel=1e-3)


@pytest.mark.slow
def test_compiled(tmp_path: Path) -> None:
    """One layer, and the compiler's front half: graphs break at what is patched and trained."""
    runs = []
    for options in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        torch._dynamo.reset()
        model = one_layer("llama")
        hf_sparsify.patch(model, ATTENTION, FEED_FORWARD)
        run = trainer(model, tmp_path, max_steps=2, save_strategy="no", **options)
        run.train_dataset = [{**one, "labels": one["input_ids"]} for one in data()]
        run.train()
        runs.append(run)
    torch._dynamo.reset()
    assert call_paths(runs[1].model) == call_paths(runs[0].model)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-3)


@pytest.mark.parametrize("options", [{"bf16": True}, {"bf16": True, "gradient_checkpointing": True}], ids=str)
def test_autocast(options: dict[str, Any], whole_run: Trainer, tmp_path: Path) -> None:
    run = trainer(patched(), tmp_path, **options)
    run.train()
    assert losses(run) != losses(whole_run)
    assert losses(run) == pytest.approx(losses(whole_run), rel=0.1)
    assert all(parameter.dtype == torch.float32 for parameter in run.model.parameters())
