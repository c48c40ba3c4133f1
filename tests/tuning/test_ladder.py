"""The ladder: budgets, what is put on each rung, and what has no rung."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hf_sparsify import SparsifyError, UsageError
from hf_sparsify.tuning.ladder import check_rungs, grid_for, make_ladder, share_kept, weights_of
from hf_sparsify.tuning.sensitivity import PREDICTED_KL, STREAM_ERROR, ModuleSensitivity, SensitivityMap

KEEPS = [1.0, 0.5, 0.25, 0.1]
RUNGS = (0.5, 0.25, 0.1)


def module(error: float, **changes: object) -> ModuleSensitivity:
    errors = [0.0, error, 2 * error, 8 * error]
    plain = ModuleSensitivity(
        "self", "decoder", 0, 4, errors, errors, None, list(KEEPS), list(KEEPS), [9.0, 8.0, 5.0, 4.0], 1000, 100, 8
    )
    return replace(plain, **changes)


def made(*errors: float, **changes: object) -> SensitivityMap:
    modules = {f"layer.{place}": module(error, **changes) for place, error in enumerate(errors)}
    return SensitivityMap(KEEPS, 4, STREAM_ERROR, modules)


def test_budgets_are_what_uniform_keeps_cost_and_the_tuned_cells_fit_them() -> None:
    found = made(1.0, 0.1, 0.001, 0.0001)
    tuned, uniform = make_ladder(found, "kept", RUNGS, found.modules)
    assert [cell.keep for cell in uniform] == list(RUNGS)
    assert [cell.cost for cell in uniform] == pytest.approx(RUNGS)
    for (cell,), same in zip(tuned, uniform, strict=False):
        assert cell.budget == same.cost
        assert cell.cost <= same.cost * (1 + 1e-6)
    assert tuned[0][0].keeps["layer.3"] == 0.1
    assert "layer.0" not in tuned[0][0].keeps


def test_costs_fall_along_the_ladder() -> None:
    found = made(3.0, 1.0, 0.3, 0.1, 0.03)
    for goal in ("kept", "v-rows", "latency"):
        tuned, _ = make_ladder(found, goal, RUNGS, found.modules)
        costs = [cell.cost for (cell,) in tuned]
        assert costs == sorted(costs, reverse=True)
        assert len({tuple(sorted(cell.keeps.items())) for (cell,) in tuned}) == len(tuned)


def test_dense_modules_of_the_uniform_plan_count_in_its_budget() -> None:
    found = made(1.0, 1.0)
    _, uniform = make_ladder(found, "kept", (0.5,), ["layer.1"])
    assert uniform[0].keeps == {"layer.1": 0.5}
    assert uniform[0].cost == pytest.approx(0.75)


def test_both_errors_of_a_map_make_a_cell_where_they_differ() -> None:
    first = replace(module(1.0), stream_error=[0.0, 0.01, 0.02, 0.08])
    second = replace(module(0.01), stream_error=[0.0, 1.0, 2.0, 8.0])
    found = SensitivityMap(KEEPS, 4, PREDICTED_KL, {"a": first, "b": second})
    tuned, _ = make_ladder(found, "kept", (0.1,), ["a"])
    kl, stream = tuned[0]
    assert (kl.by, stream.by) == ("predicted KL", "stream error")
    assert kl.keeps == {"b": 0.1}
    assert stream.keeps == {"a": 0.1}


def test_time_goes_in_even_steps_to_the_fastest_and_slower_calls_are_left_dense() -> None:
    found = made(1.0, 0.1, microseconds=[9.0, 12.0, 10.0, 6.0])
    tuned, _ = make_ladder(found, "latency", RUNGS, found.modules)
    assert [cell.keeps for (cell,) in tuned] == [{"layer.1": 0.1}, {"layer.0": 0.1, "layer.1": 0.1}]
    assert tuned[-1][0].cost == pytest.approx(6 / 9)


def test_modules_without_v_rows_stay_dense() -> None:
    found = made(1.0, 1.0)
    encoder = replace(module(1e-9), stack="encoder", v_rows=None, decode_rows=0)
    found = replace(found, modules={**found.modules, "encoder": encoder})
    tuned, _ = make_ladder(found, "v-rows", RUNGS, found.modules)
    assert all("encoder" not in cell.keeps for (cell,) in tuned)
    assert weights_of(found, "v-rows")["encoder"] == 0
    assert share_kept(found, "v-rows", {"layer.0": 0.5}) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("goal", "changes", "sentence"),
    [
        ("kept", {"kept": [1.0, 1.0, 1.0, 1.0]}, "long enough"),
        ("latency", {"microseconds": [1.0, 2.0, 2.0, 2.0]}, "no module is faster"),
        ("v-rows", {"decode_rows": 0, "v_rows": None}, "no V rows"),
    ],
)
def test_what_saves_nothing_is_refused(goal: str, changes: dict[str, object], sentence: str) -> None:
    found = made(1.0, 1.0, **changes)
    with pytest.raises(SparsifyError, match=sentence):
        make_ladder(found, goal, RUNGS, found.modules)


def test_rungs_are_sorted_and_part_of_the_grid() -> None:
    assert check_rungs([0.1, 0.42]) == (0.42, 0.1)
    grid = grid_for((0.42, 0.1))
    assert grid[0] == 1.0
    assert {0.42, 0.1} < set(grid)
    assert grid == sorted(set(grid), reverse=True)


@pytest.mark.parametrize(
    "keeps", [[], [0.5, 0.5], [1.0], [0.0], [-1.0], [float("nan")], [0.9 - i / 20 for i in range(9)]]
)
def test_rungs_that_cannot_be(keeps: list[float]) -> None:
    with pytest.raises(UsageError, match="--keep takes"):
        check_rungs(keeps)
