"""What is found in directories, and what is refused or left out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hf_sparsify.errors import DataError, UsageError
from hf_sparsify.evaluation import journal
from hf_sparsify.reporting.collect import collect
from hf_sparsify.reporting.headline import headline
from sweep_directories import run


@pytest.fixture
def own(sweep: Path, tmp_path: Path) -> Path:
    """A copy of the sweep that may be changed."""
    return Path(shutil.copytree(sweep, tmp_path / "sweep"))


def change(path: Path, by: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    by(content)
    path.write_text(json.dumps(content))


def test_a_sweep(sweep: Path) -> None:
    (found,) = collect([sweep])
    assert (found.kind, found.model[0], found.notes) == ("sweep", "demo-llama", ())
    assert [cell.decision for cell in found.cells] == ["PASS", "PASS", "PASS"]
    assert found.best == found.cells[-1]
    assert found.best.speed is not None
    assert found.best.accuracy is not None
    assert found.best.accuracy.flips[0].passage
    assert found.best.saved[0].share > 0.9


def test_a_tuned_recipe(tuned: Path) -> None:
    (found,) = collect([tuned])
    assert (found.kind, len(found.cells), found.notes) == ("tune", 3, ())
    assert found.sensitivity is not None
    assert len(found.sensitivity["modules"]) == 4


def test_an_ordinary_recipe_and_results_alone(sweep: Path) -> None:
    recipe = sweep / "recipes" / "top-k-keep-0.02"
    (found,) = collect([recipe])
    (cell,) = found.cells
    assert (found.kind, cell.label, found.best) == ("recipe", "top-k-keep-0.02", cell)
    assert cell.speed is not None, "the benchmark of the same plan"
    (results,) = recipe.glob("eval/*")
    assert collect([results])[0].cells[0].accuracy == cell.accuracy
    (bench,) = recipe.glob("bench/*")
    (timed,) = collect([bench])[0].cells
    assert (timed.accuracy, timed.speed) == (None, cell.speed)


def test_several_recipes_get_holms_correction(sweep: Path) -> None:
    recipes = [sweep / "recipes" / f"top-k-keep-{keep}" for keep in (0.1, 0.02)]
    found = collect(recipes)
    verdicts = [one.cells[0].accuracy.verdict for one in found if one.cells[0].accuracy]
    largest = min(1.0, 2 * min(verdict.p for verdict in verdicts))
    assert [one.cells[0].decision for one in found] == ["PASS" if largest <= 0.025 else "INCONCLUSIVE"] * 2
    assert sum(one.best is not None for one in found) == (1 if largest <= 0.025 else 0)


def copied_run(recipe: Path, name: str, hours: int, by: Callable[[dict[str, Any]], object]) -> None:
    """A changed copy of the recipe's run, that many hours newer."""
    first = max(recipe.glob("eval/*"), key=lambda path: len(path.name))
    made = Path(shutil.copytree(first, recipe / "eval" / name)) / "results.json"
    changed = json.loads(made.read_text())
    by(changed)
    changed[journal.RESULTS_HASH] = journal._hash(changed)
    made.write_text(json.dumps(changed))
    os.utime(made, (made.stat().st_mtime + 3600 * hours,) * 2)


def failed(results: dict[str, Any]) -> None:
    results["verdict"].update(decision="FAIL", p=1.0, reason="it broke")


def test_runs_of_an_earlier_plan_are_left_out(own: Path) -> None:
    recipe = own / "recipes" / "top-k-keep-0.02"
    copied_run(recipe, "0", 1, lambda results: results.update(plan={}))
    copied_run(recipe, "1", 1, lambda results: results.update(calibration={"samples": 3}))
    (found,) = collect([recipe])
    assert [cell.decision for cell in found.cells] == ["PASS"]
    assert found.notes == (f"left out: 2 evaluations of {recipe}, not of the plan it has now",)
    run("patch", "demo-llama", "--k", "32", "--no-verify", "--force", "-o", recipe)
    with pytest.raises(
        UsageError, match=r"nothing to report.*3 evaluations of .*, not of the plan it has now; .*1 benchmark of"
    ):
        collect([recipe])


@pytest.mark.parametrize("hours", [-1, 1])
def test_the_newest_run_on_the_same_data_decides(own: Path, hours: int) -> None:
    recipe = own / "recipes" / "top-k-keep-0.02"
    copied_run(recipe, "0", hours, failed)
    (found,) = collect([recipe])
    assert [cell.decision for cell in found.cells] == ["FAIL" if hours > 0 else "PASS"]
    assert found.notes[0].startswith(f"left out: 1 older evaluation of {recipe}, on the same data")


def test_a_recipe_that_fails_elsewhere_is_not_recommended(own: Path) -> None:
    recipe = own / "recipes" / "top-k-keep-0.02"

    def stricter(results: dict[str, Any]) -> None:
        failed(results)
        results["verdict"].update(margin="a drop of at most 1.0 points")

    copied_run(recipe, "0", -1, stricter)
    (found,) = collect([recipe])
    assert len(found.cells) == 2
    assert found.best is None
    assert headline(found)[0] == "FAIL"


def test_damaged_files_are_left_out_with_a_sentence(own: Path) -> None:
    first, second, third = (json.loads((own / "sweep.json").read_text())["cells"][n] for n in range(3))
    change(own / first["results"], lambda content: content["scores"]["patched"].update(f1=99.0))
    (own / second["results"]).unlink()
    (own / third["bench"]).write_text("{")
    (found,) = collect([own])
    assert [cell.accuracy is None for cell in found.cells] == [True, True, False]
    assert found.cells[2].speed is None
    assert len(found.notes) == 3
    assert "results.json is damaged, unfinished or from another version" in found.notes[0]
    assert "bench.json is damaged: " in found.notes[2]


def test_files_outside_the_directory_are_not_read(own: Path) -> None:
    shutil.copytree(own / "recipes", own.parent / "recipes")
    change(
        own / "sweep.json", lambda content: content["cells"][0].update(results=f"../{content['cells'][0]['results']}")
    )
    (found,) = collect([own])
    assert found.cells[0].accuracy is None
    assert "is outside" in found.notes[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content.pop("cells"),
        lambda content: content.update(cells=[{}]),
        lambda content: content.update(cells=3),
        lambda content: content.update(recommended="best"),
        lambda content: content.update(base_model=None),
        lambda content: content.update(gate=[]),
    ],
)
def test_a_damaged_sweep_is_one_sentence(own: Path, damage: Callable[[dict[str, Any]], object]) -> None:
    change(own / "sweep.json", damage)
    with pytest.raises(DataError, match=r"sweep\.json is not what sweep writes"):
        collect([own])


def test_damaged_sensitivities_are_left_out(tuned: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(tuned, tmp_path / "tuned"))
    change(mine / "tune" / "sensitivity.json", lambda content: content.update(keeps=[1.0]))
    (found,) = collect([mine])
    assert found.sensitivity is None
    assert found.notes[0].endswith("is not what tune writes")


def test_a_search_that_has_not_ended(own: Path) -> None:
    def stop(content: dict[str, Any]) -> None:
        content.update(ended=False, recommended=None)
        content["cells"][2].update(status="waiting", results=None, bench=None, saved=None, verdict=None)
        content["cells"][1].update(status="refused", error="it leaks", results=None, saved=None, verdict=None)

    change(own / "sweep.json", stop)
    (found,) = collect([own])
    assert [cell.error for cell in found.cells] == ["", "it leaks", "waiting"]
    assert found.best is None


def test_what_is_refused(sweep: Path, own: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no directory .*nowhere: name a sweep directory, a tuned recipe"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds nothing to report: name a sweep directory"):
        collect([tmp_path / "empty"])
    change(own / "sweep.json", lambda content: content["base_model"].update(config_hash="other", id="other"))
    with pytest.raises(UsageError, match=r"a report is about one model: .* is about demo-llama, .* about other"):
        collect([sweep, own])
