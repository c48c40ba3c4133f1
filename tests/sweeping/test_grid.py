"""The cells of a grid: their names, their order, their chains, and lists that are none."""

from __future__ import annotations

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import Clustered, TopK, TopKFeedForward, TopTheta
from hf_sparsify.sweeping.grid import Cell, Setting, chains_of, make_cells, middle


def names(cells: tuple[Cell, ...] | list[Cell]) -> list[str]:
    return [cell.name for cell in cells]


def test_a_chain_goes_from_dense_to_sparse_whatever_was_typed() -> None:
    cells = make_cells("top-k,top-theta", keep="0.1,1,0.5,0.5")
    assert {name: names(chain) for name, chain in chains_of(cells).items()} == {
        "top-k": ["top-k-keep-1.0", "top-k-keep-0.5", "top-k-keep-0.1"],
        "top-theta": ["top-theta-keep-1.0", "top-theta-keep-0.5", "top-theta-keep-0.1"],
    }
    assert [cell.setting.is_dense for cell in cells] == [True, False, False] * 2
    assert [cell.setting.needs_thresholds for cell in cells] == [False, False, False, False, True, True]


def test_the_defaults() -> None:
    cells = make_cells("top-k,clustered-plain")
    assert names(cells)[:5] == [f"top-k-keep-{keep}" for keep in (1.0, 0.5, 0.25, 0.1, 0.05)]
    assert names(cells)[5:] == [f"clustered-plain-clusters-{count}" for count in (200, 100, 50, 25)]


def test_counts_go_from_many_to_few() -> None:
    cells = make_cells("top-k,clustered", k="8,64", clusters="10,100", min_length=7, compensation="none")
    assert [cell.setting.label for cell in cells] == [
        "top-k, k = 64",
        "top-k, k = 8",
        "clustered, 100 clusters",
        "clustered, 10 clusters",
    ]
    assert cells[0].wanted.attention == TopK(k=64, min_length=7)
    assert cells[3].wanted.attention == Clustered(clusters=10, min_length=7), "a method takes what it knows"


def test_feed_forward_layers_are_a_further_axis() -> None:
    cells = make_cells("top-k,none", keep="1.0,0.5", ffn_keep="0.25,1.0")
    assert {name: names(chain) for name, chain in chains_of(cells).items()} == {
        "top-k": ["top-k-keep-1.0", "top-k-keep-0.5"],
        "top-k-ffn-0.25": ["top-k-keep-1.0-ffn-0.25", "top-k-keep-0.5-ffn-0.25"],
        "ffn": ["ffn-keep-1.0", "ffn-keep-0.25"],
    }
    assert [cell.setting.is_dense for cell in cells] == [True, False, False, False, True, False]
    assert [cell.wanted.feed_forward for cell in cells] == [
        *(None, None),
        *(TopKFeedForward(keep=0.25), TopKFeedForward(keep=0.25)),
        *(TopKFeedForward(keep=1.0), TopKFeedForward(keep=0.25)),
    ]
    assert cells[-1].wanted.attention is None
    assert cells[-1].setting.label == "FFN, keep = 0.25"
    assert cells[3].setting.label == "top-k, keep = 0.5, FFN keep = 0.25"


def test_feed_forward_layers_take_counts_too() -> None:
    cells = make_cells("top-k,none", keep="1.0,0.5", ffn_k="64,256")
    assert {name: names(chain) for name, chain in chains_of(cells).items()} == {
        "top-k-ffn-k-256": ["top-k-keep-1.0-ffn-k-256", "top-k-keep-0.5-ffn-k-256"],
        "top-k-ffn-k-64": ["top-k-keep-1.0-ffn-k-64", "top-k-keep-0.5-ffn-k-64"],
        "ffn": ["ffn-k-256", "ffn-k-64"],
    }
    assert not any(cell.setting.is_dense for cell in cells)
    assert [cell.wanted.feed_forward for cell in cells] == [TopKFeedForward(k=k) for k in (256, 256, 64, 64, 256, 64)]
    assert [cells[0].setting.label, cells[-1].setting.label] == ["top-k, keep = 1.0, FFN k = 256", "FFN, k = 64"]


@pytest.mark.parametrize(
    ("keep", "at"), [("1.0,0.5,0.25,0.1,0.05", 0.25), ("1.0,0.3", 0.3), ("0.5,0.1", 0.5), ("0.5,0.2,0.1", 0.2)]
)
def test_calibration_is_at_the_middle(keep: str, at: float) -> None:
    found = middle(make_cells("top-k,top-theta", keep=keep, ffn_keep="1.0,0.5"))
    assert found is not None
    assert found.setting == Setting("top-theta", keep=at, ffn_keep=1.0)
    assert isinstance(found.wanted.attention, TopTheta)


def test_nothing_to_calibrate() -> None:
    assert middle(make_cells("top-k")) is None
    assert middle(make_cells("top-theta", keep="1.0")) is None


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ("top-q", {}, "--methods: unknown method 'top-q'"),
        ("", {}, "--methods: unknown method ''"),
        ("top-k", {"keep": "0.5,x"}, "--keep: 'x' is no fraction in"),
        ("top-k", {"keep": "0"}, "--keep: '0' is no fraction"),
        ("top-k", {"keep": "nan"}, "--keep: 'nan'"),
        ("top-k", {"keep": "1.5"}, "--keep: '1.5'"),
        ("top-k", {"keep": "0.5,"}, "--keep: ''"),
        ("top-k", {"keep": ""}, "--keep: ''"),
        ("clustered", {"clusters": ""}, "--clusters: ''"),
        ("top-k", {"k": "0"}, "--k: '0' is no whole number"),
        ("top-k", {"k": "9" * 5000}, "--k: '9"),
        ("top-k", {"k": "4", "keep": "0.5"}, "--k and --keep exclude each other"),
        ("top-k", {"clusters": "50"}, "--clusters does not go with --methods top-k"),
        ("clustered", {"keep": "0.5"}, "--keep does not go with --methods clustered"),
        ("clustered", {"k": "5"}, "--k does not go with --methods clustered"),
        ("clustered,none", {"ffn_keep": "0.5", "compensation": "sdc"}, "--compensation does not go with"),
        ("top-k", {"min_keep": 2}, "--min-keep does not go with --methods top-k"),
        ("none", {}, "--methods none leaves attention dense: give --ffn-keep or --ffn-k too"),
        ("none", {"ffn_k": "64,x"}, "--ffn-k: 'x' is no whole number of at least 1; write a list such as 256,64"),
        ("none", {"ffn_k": "64", "ffn_keep": "0.5"}, "--ffn-k and --ffn-keep exclude each other"),
        ("top-k", {"k": "8,2", "protect_first": 3}, "top-k, k = 2: 3 protected keys do not fit in k = 2"),
        ("top-k", {"layers": "x"}, "layers: 'x' is neither"),
        ("top-theta", {"min_keep": 0}, "min_keep must be a whole number of at least 1"),
    ],
)
def test_what_is_refused(methods: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        make_cells(methods, **options)  # type: ignore[arg-type]


def test_options_that_are_not_given_are_not_missed() -> None:
    assert make_cells("clustered", protect_first=0, protect_recent=0, compensation=None, min_length=0)
