"""`sparsify plot`, as a person runs it: which files it writes, what it says of them, and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from command_line import Sparsify, contents, files, refused
from hf_sparsify.commands.plot_data import chosen_heads, newest_kept
from hf_sparsify.evaluation import journal
from hf_sparsify.patcher.pattern import Pattern, Weights
from hf_sparsify.patcher.recipe import load_recipe

QUESTION = ("-d", "q.jsonl")
PROMPT = "Where is Ann ? Ann is in the attic . Ben is in the barn ."


def said(out: str) -> dict[str, str]:
    """File name -> sentence, of what a command printed."""
    pairs = (line.split(": ", 1) for line in out.splitlines())
    return {Path(path).name: sentence for path, sentence in pairs}


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


def test_a_calibrated_recipe_has_all_three(sparsify: Sparsify, calibrated: Path) -> None:
    before = contents(calibrated)
    done = sparsify("plot", *QUESTION)
    assert done.code == 0, done.err
    names = ["activations.png", "kept.png", "pattern.png", "thresholds.png"]
    assert files(calibrated / "plots") == names
    assert all(is_png(calibrated / "plots" / name) for name in names)
    sentences = said(done.out)
    assert sorted(sentences) == names
    assert "thresholds in 2 modules" in sentences["thresholds.png"]
    assert "of what their long rows see" in sentences["kept.png"]
    assert "where the dense model has it" in sentences["pattern.png"]
    assert {name: data for name, data in contents(calibrated).items() if not name.startswith("plots")} == before


def test_a_recipe_without_thresholds_says_so(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("plot", *QUESTION)
    assert done.code == 0, done.err
    assert files(recipe / "plots") == ["kept.png", "pattern.png"]
    assert "no plot of thresholds: the recipe has none" in done.err
    shutil.rmtree(recipe / "plots")
    assert "no plot of thresholds" not in sparsify("plot", *QUESTION, "--quiet").err


def test_kept_shares_are_those_of_the_newest_evaluation(sparsify: Sparsify, calibrated: Path) -> None:
    assert sparsify("eval", *QUESTION).code == 0
    (results,) = (calibrated / "eval").glob("*/results.json")
    modules = json.loads(results.read_text())["kept"]["modules"]
    shares = [share for counts in modules.values() for share in counts["heads"] or ()]
    assert len(shares) == 8
    (calibrated / "plots").mkdir()
    (calibrated / "plots" / "kept.png").write_text("old")
    kept = newest_kept(load_recipe(calibrated), calibrated)
    assert kept is not None
    assert kept.source == str(results.relative_to(calibrated))
    assert kept.modules == modules
    done = sparsify("plot", "--prompt", PROMPT)
    assert "measured on the prompt" in said(done.out)["kept.png"]
    assert is_png(calibrated / "plots" / "kept.png")


def test_results_of_another_plan_or_without_heads_are_not_used(sparsify: Sparsify, recipe: Path) -> None:
    assert sparsify("eval", *QUESTION).code == 0
    assert newest_kept(load_recipe(recipe), recipe) is not None
    (path,) = (recipe / "eval").glob("*/results.json")
    results = json.loads(path.read_text())
    for counts in results["kept"]["modules"].values():
        del counts["heads"]
    results[journal.RESULTS_HASH] = journal._hash(results)
    path.write_text(json.dumps(results))
    assert journal.ended_run(path.parent) is not None  # what an older version wrote is still read
    assert newest_kept(load_recipe(recipe), recipe) is None
    assert sparsify("patch", "llama", "--k", "5", "--no-verify", "--force").code == 0
    assert newest_kept(load_recipe(recipe), recipe) is None


def test_the_layer_and_the_head_that_are_asked_for(sparsify: Sparsify, recipe: Path) -> None:
    done = sparsify("plot", "--prompt", PROMPT, "--layer", "0", "--head", "3", "-o", "elsewhere", "--format", "svg")
    assert done.code == 0, done.err
    assert files(Path("elsewhere")) == ["kept.svg", "pattern.svg"]
    assert not (recipe / "plots").exists()
    assert "decoder self layer 0, head 3: keeps " in said(done.out)["pattern.svg"]
    drawn = Path("elsewhere/pattern.svg").read_text()
    assert ">attic<" in drawn
    assert "the prompt" in drawn


def test_an_encoder_decoder_model_has_a_pattern_of_each_kind(sparsify: Sparsify) -> None:
    assert sparsify("patch", "t5", "--k", "4", "--no-verify").code == 0
    done = sparsify("plot", "--prompt", PROMPT)
    assert done.code == 0, done.err
    patterns = {f"pattern-{kind}.png" for kind in ("encoder-self", "decoder-self", "decoder-cross")}
    assert patterns <= {*said(done.out)}


def test_clustered_attention_and_feed_forward_layers_have_bars(sparsify: Sparsify) -> None:
    options = ("--attention", "clustered", "--clusters", "3", "--k", "4", "--min-length", "0", "--ffn", "top-k")
    assert sparsify("patch", "bert-qa", *options, "--no-verify").code == 0
    done = sparsify("plot", *QUESTION)
    assert done.code == 0, done.err
    assert sorted(said(done.out)) == ["activations.png", "clusters.png", "pattern.png"]
    assert "kept share of activations: 50.0 % over 2 modules" in said(done.out)["activations.png"]
    assert "keeps" not in said(done.out)["pattern.png"]


def test_intercepted_modules_are_drawn_too(sparsify: Sparsify) -> None:
    assert sparsify("patch", "gpt-neo", "--k", "4", "--no-verify").code == 0
    done = sparsify("plot", "--prompt", PROMPT)
    assert done.code == 0, done.err
    assert sorted(said(done.out)) == ["kept.png", "pattern.png"]


def test_rows_within_their_k_are_said_to_be(sparsify: Sparsify) -> None:
    assert sparsify("patch", "llama", "--k", "400", "--no-verify").code == 0
    done = sparsify("plot", "--prompt", PROMPT)
    assert done.code == 0, done.err
    assert sorted(said(done.out)) == ["pattern.png"]
    assert "no row saw more keys than its k" in done.err


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (("nowhere",), 2, "nowhere holds no recipe: make one with `sparsify patch MODEL`"),
        (("llama",), 2, "llama holds no recipe"),
        (("--layer", "7", "--prompt", PROMPT), 2, "no attention in layer 7: it patches that of layers 0-1"),
        (("--head", "4", "--prompt", PROMPT), 2, "has no head 4: it has heads 0-3"),
        (
            (
                "--layer",
                "-1",
            ),
            2,
            "--layer must be at least 0, not -1",
        ),
        (("--prompt", " "), 2, "the prompt is empty"),
        (("--prompt", "Ann " * 600), 2, "the prompt has 600 tokens and a pattern at most 512: shorten it"),
        (("--format", "pdf"), 2, "--format must be png or svg, not 'pdf'"),
        (("-o", "q.jsonl"), 1, "cannot write the plots to q.jsonl: it is a file"),
        (("-d", "empty.jsonl"), 1, "empty.jsonl"),
    ],
)
def test_refusals_are_one_sentence(
    sparsify: Sparsify, recipe: Path, options: tuple[str, ...], code: int, sentence: str
) -> None:
    refused(sparsify("plot", *options), code, sentence)
    assert not (recipe / "plots").exists()


def test_without_a_recipe_or_the_extra(sparsify: Sparsify, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(sparsify("plot"), 2, "there is no recipe in ./sparsified")
    monkeypatch.setattr("hf_sparsify.charts.extra._LIBRARIES", ("no_such_library",))
    refused(sparsify("plot"), 1, "a plot needs the charting libraries: pip install 'hf-sparsify[plot]'")
    assert "no_such_library" not in sys.modules


def test_the_heads_that_differ_most_are_chosen() -> None:
    seen = torch.ones(3, 2, 4, dtype=torch.bool)
    kept = seen.clone()
    kept[1, :, :3] = False
    kept[2, :, 0] = False
    none = torch.zeros_like(seen)
    weights = torch.full((3, 2, 4), 0.25)
    assert chosen_heads(Pattern(Weights(weights, seen, seen, none), Weights(weights, seen, kept, none))) == [1, 0]
    moved = weights.clone()
    moved[1] = torch.tensor([1.0, 0, 0, 0])
    moved[2] = torch.tensor([0.5, 0.5, 0, 0])
    same_shares = Pattern(Weights(weights, seen, seen, none), Weights(moved, seen, seen, none))
    assert chosen_heads(same_shares) == [1, 0]
    one = Pattern(*(Weights(weights[:1], seen[:1], seen[:1], none[:1]) for _ in range(2)))
    assert chosen_heads(one) == [0]
