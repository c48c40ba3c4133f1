"""The paper's figures beside examples/unifiedqa.py, and the script on a directory of UnifiedQA's files."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import Any

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.evaluation.datasets import DATASETS
from hf_sparsify.evaluation.demo import demo_model_path

EXAMPLES = Path(__file__).parents[2] / "examples"
MODELS: dict[str, Any] = json.loads((EXAMPLES / "unifiedqa_paper.json").read_text(encoding="utf-8"))["models"]
TEN = {
    *("squad1_1", "squad2", "race_string", "mctest", "arc_easy", "arc_hard"),
    *("boolq", "openbookqa", "narrativeqa", "commonsenseqa"),
}


def changes(model: str, k: int) -> list[float]:
    """EM at k less EM of the dense model, by data set."""
    table = MODELS[model]
    rows = table["exact_match"]
    return [sparse - dense for sparse, dense in zip(rows[str(k)], rows[str(table["d_ff"])], strict=True)]


@pytest.mark.parametrize(
    ("model", "k", "average", "worst"),
    [
        ("unifiedqa-t5-base", 1024, 0, 0),
        ("unifiedqa-t5-base", 512, -0.04, -0.2),
        ("unifiedqa-t5-base", 256, -0.12, -0.7),
        ("unifiedqa-t5-base", 128, 0.08, -0.7),
        ("unifiedqa-t5-base", 64, -0.02, -1.5),
        ("unifiedqa-t5-base", 32, -1.47, -2.8),
        ("unifiedqa-t5-base", 16, -3.68, -7.0),
        ("unifiedqa-t5-3b", 256, -0.16, -1.6),
        ("unifiedqa-t5-3b", 64, -1.92, -7.7),
        ("unifiedqa-t5-3b", 16, -12.35, -18.4),
        ("unifiedqa-t5-11b", 256, -0.33, -1.6),
        ("unifiedqa-t5-11b", 64, -4.22, -9.0),
    ],
)
def test_means_of_the_papers_figures(model: str, k: int, average: float, worst: float) -> None:
    found = changes(model, k)
    assert round(mean(found), 2) == pytest.approx(average)
    assert min(found) == pytest.approx(worst)


@pytest.mark.parametrize("model", MODELS)
def test_figures_are_whole(model: str) -> None:
    table = MODELS[model]
    assert set(table["datasets"]) >= TEN
    assert table["exact_match"].keys() == table["f1"].keys()
    for em, f1 in zip(table["exact_match"].values(), table["f1"].values(), strict=True):
        assert len(em) == len(f1) == len(table["datasets"])
        assert all(0 < exact <= overlap < 100 for exact, overlap in zip(em, f1, strict=True))


def test_the_documented_changes_are_those_of_the_figures() -> None:
    page = (EXAMPLES.parent / "docs" / "experiments" / "unifiedqa.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split("|") for line in page.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row[0]) for row in rows] == [1024, 512, 256, 128, 64, 32, 16]
    for k, *cells in rows:
        for model, shown in zip(MODELS, zip(cells[::2], cells[1::2], strict=True), strict=False):
            if k.strip() in MODELS[model]["exact_match"]:
                found = changes(model, int(k))
                assert [float(cell) for cell in shown] == pytest.approx([round(mean(found), 2), round(min(found), 1)])
            else:
                assert not "".join(shown).strip()


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("unifiedqa_example", EXAMPLES / "unifiedqa.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_data_sets_of_the_paper(script: Any, tmp_path: Path) -> None:
    assert set(script.HUB.values()) <= DATASETS.keys()
    assert script.HUB.keys() == TEN - {"mctest"}
    assert script.default_datasets("demo-t5", None) == ["demo"]
    assert set(script.default_datasets("allenai/unifiedqa-t5-base", None)) == TEN - {"mctest"}
    assert len(script.default_datasets("allenai/unifiedqa-t5-11b", tmp_path)) == 12
    assert script.paper_of("allenai/unifiedqa-v2-t5-base-1251000") == {}


def test_files_of_a_data_set(script: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"has neither boolq/dev\.tsv nor boolq/test\.tsv"):
        script.questions("boolq", tmp_path)
    (tmp_path / "boolq").mkdir()
    for split in ("test", "dev"):  # the development set is preferred
        (tmp_path / "boolq" / f"{split}.tsv").write_text("is it up? \\n It is.\t" + split + "\n", encoding="utf-8")
        items = script.questions("boolq", tmp_path)
        assert (items.name, items.items[0].answers) == ("boolq", (split,))


def test_k_is_fewer_than_all(script: Any) -> None:
    model = SimpleNamespace(config=SimpleNamespace(d_ff=256))
    loaded: Any = SimpleNamespace(model=model, base=SimpleNamespace(id="any", task="seq2seq-lm"))
    assert script.kept(None, {}, loaded) == [64, 32, 16, 8, 4, 2, 1]
    assert script.kept([16, 256, 64, 16], {}, loaded) == [64, 16]
    assert script.kept(None, script.paper_of("unifiedqa-t5-base"), loaded) == [128, 64, 32, 16]
    with pytest.raises(UsageError, match="--k: 256 is no fewer than all, d_ff is 256"):
        script.kept([256, 512], {}, loaded)
    model.config = SimpleNamespace()
    with pytest.raises(UsageError, match="any is no T5 model"):
        script.kept([16], {}, loaded)


def run(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "unifiedqa.py"), "unifiedqa-t5-base", "--k", "64", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)


@pytest.mark.slow
def test_unifiedqas_own_files(tmp_path: Path) -> None:
    shutil.copytree(demo_model_path("demo-t5"), tmp_path / "unifiedqa-t5-base")  # by its name a model of the paper
    folder = tmp_path / "data" / "mctest_corrected_the_separator"
    folder.mkdir(parents=True)
    (folder / "test.tsv").write_text("where does anna live? \\n anna lives in rome.\trome\n", encoding="utf-8")
    done = run(tmp_path, "--data", "data", "--datasets", "mctest")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\| mctest \| \d+\.\d \[85\.3\] \| \d+\.\d \[86\.2\] \|$", done.stdout, re.MULTILINE), (
        done.stdout
    )
    assert "| mean change | +0.00 [+0.00] | " in done.stdout
    assert "| mctest | 1 | " in done.stdout
    (results,) = (tmp_path / "unifiedqa-results" / "k-64" / "eval").glob("mctest-*/results.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["max_input_tokens"] == 512
    assert found["primary"] == "exact_match"
    again = run(tmp_path, "--data", "data", "--datasets", "mctest")
    assert again.stdout == done.stdout
