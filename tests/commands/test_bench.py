"""`sparsify bench` on tiny models: what it writes and says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from command_line import Sparsify, contents, refused
from hf_sparsify.commands.bench import parse_lengths
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.recipe import load_recipe

SHORT = ("--lengths", "16,24", "--new-tokens", "4", "--repeats", "2", "--no-memory")


@pytest.fixture(autouse=True)
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (0.0, 0.0, 0.0))


def test_lengths_as_they_are_typed() -> None:
    assert parse_lengths("2k, 512,512") == (512, 2048)
    assert parse_lengths(None) is None
    for wrong in ("", "0", "1.5k", "many", "-4"):
        with pytest.raises(UsageError, match="--lengths"):
            parse_lengths(wrong)


def test_a_recipe(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("bench", *SHORT)
    assert done.code == 0, done.err
    (written,) = (recipe / "bench").iterdir()
    results = json.loads((written / "bench.json").read_text())
    assert [entry["tokens"] for entry in results["lengths"]] == [16, 24]
    assert set(results["lengths"][0]["phases"]["decode"]["seconds"]) == {"dense", "eager", "patched"}
    assert (written / "ratio.png").stat().st_size > 1000
    for sentence in results["sentences"]:
        assert sentence in " ".join(done.out.split())  # whatever lines it is broken into
    assert "at most" in done.out
    assert f"wrote {written.relative_to(recipe.parent)}" in done.err


def test_json_and_a_place_of_its_own(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("bench", *SHORT, "--json", "-q", "-o", "here")
    assert json.loads(done.out) == json.loads(Path("here/bench.json").read_text())
    assert done.err == ""
    refused(sparsify("bench", *SHORT, "-o", "here"), 2, "here holds results already")


def test_texts_of_a_data_set(sparsify: Sparsify, recipe: Path) -> None:
    assert sparsify("bench", *SHORT, "-d", "q.jsonl", "-o", "here").code == 0
    assert json.loads(Path("here/bench.json").read_text())["text"] == "q.jsonl"


def test_without_eager_attention(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("bench", *SHORT, "--no-eager", "--json")
    assert set(json.loads(done.out)["lengths"][0]["phases"]["prefill"]["seconds"]) == {"dense", "patched"}


@pytest.mark.parametrize("model", ["t5", "bert", "bert-qa"])
def test_a_model_without_a_recipe(model: str, sparsify: Sparsify, work: Path) -> None:
    done = sparsify("bench", model, *SHORT)
    assert done.code == 0, done.err
    assert len(list((work / "sparsified-bench").iterdir())) == 1


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ("--attention clustered --clusters 2 --k 1", {"scores computed": ["18.8 %", "12.5 %"]}),
        ("--attention none --ffn top-k --ffn-keep 0.25", {"activations kept": ["25.0 %", "25.0 %"]}),
    ],
)
def test_what_a_method_counts_has_a_column(options: str, columns: dict[str, list[str]], sparsify: Sparsify) -> None:
    assert sparsify("patch", "bert", *options.split(), "--no-verify").code == 0
    table = sparsify("bench", *SHORT, "--no-eager", "-q").out.split("Where the time goes\n")[1].splitlines()
    ((title, shares),) = columns.items()
    assert table[0].split("at most")[1].strip() == title
    assert [line.split("x")[-1].strip() for line in table[2:4]] == shares


@pytest.mark.slow
def test_memory_comes_from_processes_of_their_own(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("bench", "--lengths", "16,24", "--new-tokens", "4", "--repeats", "1", "-o", "here")
    assert done.code == 0, done.err
    for entry in json.loads(Path("here/bench.json").read_text())["lengths"]:
        assert set(entry["peak_memory"]) == {"dense", "eager", "patched"}
        assert all(peak >= 0 for peak in entry["peak_memory"].values())
    assert "Peak memory" in done.out


def test_without_a_library_for_plots(sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_sparsify.benchmark.plot.charts_installed", lambda: False)
    done = sparsify("bench", *SHORT, "-o", "here")
    assert done.code == 0
    assert "hf-sparsify[plot]" in done.err
    assert [path.name for path in Path("here").iterdir()] == ["bench.json"]


def test_a_busy_machine(sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert "the machine is busy (load 1000.0" in sparsify("bench", *SHORT, "-q", "-o", "here").err


@pytest.mark.parametrize("even", [{"prefill": 19.2, "decode": 0.0}, {"prefill": 19.2, "decode": None}])
def test_write(
    even: dict[str, float | None], sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = sys.modules["hf_sparsify.commands.bench"].summary
    monkeypatch.setattr("hf_sparsify.commands.bench.summary", lambda results: {**summary(results), "break_even": even})
    before = contents(recipe)
    done = sparsify("bench", *SHORT, "--write", "-o", "here")
    assert done.code == 0, done.err
    if even["decode"] is None:
        assert "the recipe stays as it was: decode broke even at no length" in done.err
        assert contents(recipe) == before
    else:
        assert "fewer than 20 keys" in done.err
        assert {method.min_length for method in load_recipe(recipe).plan.values()} == {20}
        assert sparsify("validate").code == 0


def test_refusals(sparsify: Sparsify, recipe: Path) -> None:
    before = contents(recipe)
    refused(sparsify("bench", "--lengths", "9k"), 2, "9216 is more than the 512 positions")
    refused(sparsify("bench", "--lengths", "64"), 2, "lower --new-tokens")
    refused(sparsify("bench", "--repeats", "0"), 2, "--repeats must be at least 1")
    refused(sparsify("bench", "--batch-size", "0"), 2, "--batch-size must be at least 1")
    refused(sparsify("bench", "--new-tokens", "-1"), 2, "--new-tokens must be at least 0")
    refused(sparsify("bench", "llama", "--write"), 2, "--write goes with a recipe")
    refused(sparsify("bench", "-o", "q.jsonl/there"), 1, "is a file")
    assert contents(recipe) == before


def test_write_needs_attention(sparsify: Sparsify, recipe: Path) -> None:
    assert sparsify("patch", "llama", "--attention", "none", "--ffn", "top-k", "-o", "ffn", "--no-verify").code == 0
    refused(sparsify("bench", "ffn", "--write"), 2, "patches no attention")


def test_ctrl_c_leaves_nothing(sparsify: Sparsify, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_sparsify.benchmark.run.shares_of", stop)
    before = contents(recipe)
    assert sparsify("bench", *SHORT).code == 130
    assert contents(recipe) == before
