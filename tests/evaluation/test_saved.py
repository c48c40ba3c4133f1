"""What a recipe saves: dense modules keep all, and shares of different things are not compared."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.evaluation.module_kinds import module_kinds
from hf_sparsify.evaluation.saved import ACTIVATIONS, ELEMENTS, SCORES, Saved, savings, unbeaten, weighted
from tiny_models import build


def results(modules: dict[str, dict[str, Any]], total: dict[str, float], **kinds: tuple[int, list[str]]) -> Any:
    named = {name.replace("_", " "): {"modules": many, "patched": patched} for name, (many, patched) in kinds.items()}
    return {"kept": {"total": total, "modules": modules}, "module_kinds": named}


def test_dense_modules_keep_all() -> None:
    """Three of 30 modules that keep a twentieth do not make a model that keeps a twentieth."""
    rows = {f"layers.{n}": {"kept_share": 0.05, "elements": 100} for n in range(3)}
    (saved,) = savings(results(rows, {"kept_share": 0.05}, decoder_self=(30, list(rows))))
    assert saved == Saved(pytest.approx(0.095), ELEMENTS)


def test_a_dense_module_is_as_large_as_the_patched_ones_of_its_kind() -> None:
    rows = {
        "encoder.0": {"kept_share": 0.5, "elements": 900},
        "encoder.1": {"kept_share": 0.1, "elements": 1100},
        "cross.0": {"kept_share": 0.2, "elements": 10},
    }
    kinds = {"encoder_self": (3, ["encoder.0", "encoder.1"]), "decoder_cross": (2, ["cross.0"])}
    (saved,) = savings(results(rows, {"kept_share": 0.3}, **kinds))
    assert saved.share == pytest.approx((900 * 0.5 + 1100 * 0.9 + 10 * 0.8) / (3 * 1000 + 2 * 10))


def test_a_kind_without_a_patched_module_is_left_out_and_that_is_said() -> None:
    rows = {"cross.0": {"kept_share": 0.2, "elements": 10}}
    kinds = {"encoder_self": (2, []), "decoder_cross": (2, ["cross.0"]), "decoder_feed-forward": (2, [])}
    (saved,) = savings(results(rows, {"kept_share": 0.2}, **kinds))
    assert saved == Saved(pytest.approx(0.4), "attention elements (decoder cross)")
    assert saved.is_attention


def test_attention_comes_before_activations() -> None:
    rows = {
        "mlp.0": {"activations_kept_share": 0.5, "elements": 8},
        "a.0": {"cluster_scores_share": 0.25, "elements": 4},
    }
    total = {"activations_kept_share": 0.5, "cluster_scores_share": 0.25}
    kinds = {"encoder_self": (1, ["a.0"]), "encoder_feed-forward": (2, ["mlp.0"])}
    saved = savings(results(rows, total, **kinds))
    assert saved == (Saved(0.75, SCORES), Saved(0.25, ACTIVATIONS))
    assert [one.is_attention for one in saved] == [True, False]


def test_elements_stand_for_attention_where_scores_are_saved_too() -> None:
    rows = {"a.0": {"kept_share": 0.5, "elements": 10}, "a.1": {"cluster_scores_share": 0.1, "elements": 10}}
    total = {"kept_share": 0.5, "cluster_scores_share": 0.1}
    assert savings(results(rows, total, encoder_self=(2, list(rows)))) == (Saved(0.25, ELEMENTS),)


def test_results_without_sizes_are_of_the_patched_modules() -> None:
    rows = {"a.0": {"kept_share": 0.25}}
    assert savings(results(rows, {"kept_share": 0.25}, decoder_self=(9, ["a.0"]))) == (Saved(0.75, ELEMENTS),)
    assert savings({"kept": {"total": {"kept_share": 0.25}, "modules": rows}}) == (Saved(0.75, ELEMENTS),)
    assert savings(results({}, {})) == ()


def test_known_weights() -> None:
    rows = {"a": {"kept_share": 0.5}, "b": {"kept_share": None, "activations_kept_share": 0.25}}
    assert weighted(
        rows, ("kept_share", "activations_kept_share"), {"a": 0.5, "b": 0.4, "dense": 0.1}
    ) == pytest.approx(0.45)


def test_the_kinds_of_a_model() -> None:
    model = build("t5")
    kinds = module_kinds(model, ["decoder.block.0.layer.1.EncDecAttention"])
    assert set(kinds) == {
        *("encoder self", "decoder self", "decoder cross", "encoder feed-forward", "decoder feed-forward")
    }
    assert kinds["decoder cross"]["patched"] == ["decoder.block.0.layer.1.EncDecAttention"]
    assert kinds["encoder self"] == {"modules": model.config.num_layers, "patched": []}


def test_what_no_other_beats() -> None:
    assert unbeaten([{"x": 0.5}, {"x": 0.75}, {"x": 0.75}]) == [1], "the first of two that are alike"
    assert unbeaten([{"x": 0.5}, {"y": 0.1}]) == [0, 1]
    assert unbeaten([{"x": 0.5}, {"x": 0.5, "y": 0.1}]) == [1]
    assert unbeaten([{"x": 0.5, "y": 0.2}, {"x": 0.6, "y": 0.1}, {"x": 0.4, "y": 0.1}]) == [0, 1]
    assert unbeaten([]) == []
