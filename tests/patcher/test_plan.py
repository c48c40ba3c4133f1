"""Which modules a selection picks, and what it says to a selection that cannot be."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import tiny_models
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.binding.modules import AttentionModule, attention_modules
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.plan import make_plan
from torch import nn

METHOD = TopK(k=4)


def decoder(layers: int = 12) -> list[AttentionModule]:
    return [AttentionModule(f"layers.{n}", nn.Identity(), "self", "decoder", n, 4) for n in range(layers)]


def chosen(layers: str | Iterable[int] | None = None, skip_layers: str | Iterable[int] | None = None) -> list[int]:
    plan = make_plan(decoder(), METHOD, layers=layers, skip_layers=skip_layers)
    assert set(plan.values()) == {METHOD}
    return [int(name.rpartition(".")[2]) for name in plan]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, list(range(12))),
        ("0", [0]),
        ("2-5", [2, 3, 4, 5]),
        ("0,4-6,11", [0, 4, 5, 6, 11]),
        (" 3 , 1 - 2 ", [1, 2, 3]),
        ("3,3,2-3", [2, 3]),
        ([7, 8], [7, 8]),
        (range(2), [0, 1]),
    ],
)
def test_layers(text: str | Iterable[int] | None, expected: list[int]) -> None:
    assert chosen(text) == expected
    if expected != list(range(12)):
        assert chosen(skip_layers=text) == [n for n in range(12) if n not in expected]


def test_skipping_wins_over_choosing() -> None:
    assert chosen("2-6", "4,5") == [2, 3, 6]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("12", "layer 12 is out of range, the model has layers 0-11"),
        ("0-12", "layer 12 is out of range"),
        ("5-2", "runs backwards"),
        ("x", "'x' is neither"),
        ("", "'' is neither"),
        ("1,,2", "'' is neither"),
        ("-1", "'-1' is neither"),
        ("1.5", "'1.5' is neither"),
        ("0-999999999", "longer than any model"),
        ([12], "layer 12 is out of range"),
    ],
)
@pytest.mark.parametrize("option", ["layers", "skip_layers"])
def test_what_cannot_be_is_named(option: str, text: str | list[int], reason: str) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        make_plan(decoder(), METHOD, **{option: text})
    assert str(caught.value).startswith(f"{option.replace('_', '-')}: ")


def test_kind_and_stack_select_in_an_encoder_decoder() -> None:
    modules = attention_modules(tiny_models.build("bart"))
    names = {
        (kind, stack): list(make_plan(modules, METHOD, kind=kind, stack=stack))
        for kind, stack in (("self", "encoder"), ("self", "decoder"), ("cross", None), (None, "decoder"))
    }
    assert names["self", "encoder"] == [f"model.encoder.layers.{n}.self_attn" for n in range(2)]
    assert names["self", "decoder"] == [f"model.decoder.layers.{n}.self_attn" for n in range(2)]
    assert names["cross", None] == [f"model.decoder.layers.{n}.encoder_attn" for n in range(2)]
    assert sorted(names[None, "decoder"]) == sorted(names["self", "decoder"] + names["cross", None])


def test_a_layer_number_counts_in_every_stack() -> None:
    plan = make_plan(attention_modules(tiny_models.build("t5")), METHOD, layers="1")
    assert sorted(plan) == [
        "decoder.block.1.layer.0.SelfAttention",
        "decoder.block.1.layer.1.EncDecAttention",
        "encoder.block.1.layer.0.SelfAttention",
    ]


@pytest.mark.parametrize(
    "options", [{"kind": "cross"}, {"stack": "encoder"}, {"skip_layers": "0-11"}, {"layers": "1", "skip_layers": "1"}]
)
def test_an_empty_selection_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="leaves no module"):
        make_plan(decoder(), METHOD, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["kind", "stack"])
def test_unknown_words_are_named(option: str) -> None:
    with pytest.raises(UsageError, match=f"{option} must be .* or .*, not 'both'"):
        make_plan(decoder(), METHOD, **{option: "both"})  # type: ignore[arg-type]
