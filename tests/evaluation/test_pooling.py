"""Embeddings out of hidden states, and which pooling a model's folder asks for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_sparsify.errors import DataError, SparsifyError
from hf_sparsify.evaluation.pooling import POOLING_FILE, embed, pooling_mode

HIDDEN = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]], [[1.0, 2.0], [0.0, 5.0], [2.0, -1.0]]])
MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("mean", [[1.5, 2.0], [1.0, 2.0]]),
        ("cls", [[3.0, 0.0], [1.0, 2.0]]),
        ("max", [[3.0, 4.0], [2.0, 5.0]]),
        ("last token", [[0.0, 4.0], [2.0, -1.0]]),
    ],
)
@pytest.mark.parametrize("padding", [9.0, float("nan"), float("inf")])
def test_modes_by_hand(mode: str, expected: list[list[float]], padding: float) -> None:
    hidden = HIDDEN.clone()
    hidden[0, 2] = padding
    wanted = torch.tensor(expected)
    torch.testing.assert_close(embed(hidden, MASK, mode), wanted / wanted.norm(dim=-1, keepdim=True))


def test_half_precision_is_pooled_in_single() -> None:
    assert embed(HIDDEN.bfloat16(), MASK, "mean").dtype == torch.float32


def model_in(folder: Path, config: Any) -> Any:
    if config is not None:
        (folder / "1_Pooling").mkdir()
        text = config if isinstance(config, str) else json.dumps(config)
        (folder / POOLING_FILE).write_text(text, encoding="utf-8")
    return SimpleNamespace(model=SimpleNamespace(name_or_path=str(folder)), base=SimpleNamespace(revision=None))


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        (None, "mean"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}, "cls"),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last token"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 4}, "last token"),
        ({"pooling_mode": "cls"}, "cls"),
    ],
)
def test_what_a_folder_asks_for(config: Any, mode: str, tmp_path: Path) -> None:
    assert pooling_mode(model_in(tmp_path, config)) == mode


@pytest.mark.parametrize(
    ("config", "error", "sentence"),
    [
        ("{oops", DataError, "cannot be read as JSON"),
        ([], DataError, "holds no JSON object"),
        ({"pooling_mode_weightedmean_tokens": True}, SparsifyError, "asks for weightedmean_tokens"),
        ({"pooling_mode_cls_token": True, "pooling_mode_max_tokens": True}, SparsifyError, "cls_token and max_tokens"),
        ({"pooling_mode_cls_token": False}, SparsifyError, "asks for no mode"),
    ],
)
def test_what_cannot_be_done_is_refused(config: Any, error: type[Exception], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=sentence):
        pooling_mode(model_in(tmp_path, config))


def test_a_hub_model_that_was_never_fetched_means_mean() -> None:
    loaded: Any = SimpleNamespace(
        model=SimpleNamespace(name_or_path="no-org/no-model"), base=SimpleNamespace(revision=None)
    )
    assert pooling_mode(loaded) == "mean"


def test_a_hub_model_is_asked_at_its_revision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    asked: list[Any] = []
    (tmp_path / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))

    def download(*arguments: Any, **options: Any) -> str:
        asked.append((*arguments, options["revision"]))
        return str(tmp_path / "config.json")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    loaded: Any = SimpleNamespace(
        model=SimpleNamespace(name_or_path="no-org/no-model"), base=SimpleNamespace(revision="abc")
    )
    assert pooling_mode(loaded) == "cls"
    assert asked == [("no-org/no-model", POOLING_FILE, "abc")]
