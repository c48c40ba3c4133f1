"""The allocation against brute force, and what follows from its being the best."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hf_sparsify import UsageError
from hf_sparsify.tuning.allocation import allocate


def brute_force(errors: np.ndarray, costs: np.ndarray, budget: float) -> float:
    modules, choices = errors.shape
    rows = np.arange(modules)
    return min(
        float(errors[rows, list(chosen)].sum())
        for chosen in itertools.product(range(choices), repeat=modules)
        if costs[rows, list(chosen)].sum() <= budget + 1e-12
    )


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_has_a_smaller_error(seed: int) -> None:
    generator = np.random.default_rng(seed)
    errors, costs = generator.exponential(size=(5, 4)), generator.integers(1, 20, size=(5, 4)).astype(float)
    budget = float(generator.integers(costs.min(1).sum(), costs.max(1).sum() + 1))
    free = round(budget - costs.min(1).sum())
    chosen = allocate(errors, costs, budget, steps=max(1, free))  # a step is 1, so that costs are whole steps
    rows = np.arange(5)
    assert costs[rows, chosen].sum() <= budget
    assert errors[rows, chosen].sum() == pytest.approx(brute_force(errors, costs, budget))


@pytest.mark.parametrize("seed", range(5))
def test_costs_of_any_size_are_near_the_best_and_never_above_the_budget(seed: int) -> None:
    generator = np.random.default_rng(seed)
    errors, costs = generator.exponential(size=(6, 4)), generator.random((6, 4)) * 1e-3
    budget = float(costs.min(1).sum() + 0.4 * (costs.max(1) - costs.min(1)).sum())
    chosen = allocate(errors, costs, budget)
    rows = np.arange(6)
    assert costs[rows, chosen].sum() <= budget * (1 + 1e-9)
    smaller = costs.min(1).sum() + 0.99 * (budget - costs.min(1).sum())
    assert errors[rows, chosen].sum() <= brute_force(errors, costs, smaller) + 1e-12


def test_the_budget_goes_where_it_costs_least() -> None:
    keeps = [1.0, 0.5, 0.1]
    errors = [[0, 0.001, 0.002], [0, 0.1, 5.0], [0, 0.001, 0.002]]
    assert allocate(errors, [keeps] * 3, 1.3) == [2, 0, 2]


def test_of_choices_with_the_same_error_the_cheapest_is_taken() -> None:
    assert allocate([[0, 0, 0], [0, 0.1, 5.0]], [[1.0, 0.5, 0.1]] * 2, 1.1) == [2, 0]
    assert allocate([[0, 0, 0], [0, 0.1, 5.0]], [[1.0, 0.5, 0.1]] * 2, 1.0) == [2, 1]


def test_all_may_stay_dense_where_the_budget_allows_it() -> None:
    assert allocate([[0, 1], [0, 1]], [[1, 0.5], [1, 0.5]], 2.0) == [0, 0]


def test_a_choice_that_costs_more_than_dense_is_not_taken() -> None:
    assert allocate([[0.0, 0.1, 0.2]], [[1.0, 1.5, 2.0]], 5.0) == [0]
    assert allocate([[0.0, 0.1, 0.2]], [[1.0, 1.5, 0.9]], 0.95) == [2]


def test_only_the_cheapest_is_left_of_a_budget_that_just_holds_them() -> None:
    assert allocate([[0, 1], [0, 1]], [[1, 0.1], [1, 0.1]], 0.2) == [1, 1]


def test_a_budget_below_the_cheapest_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the cheapest costs 0\.2"):
        allocate([[0, 1], [0, 1]], [[1, 0.1], [1, 0.1]], 0.19)


def test_many_modules_are_allocated_in_a_moment() -> None:
    generator = np.random.default_rng(0)
    keeps = np.geomspace(1, 0.02, 11)
    errors = np.exp(generator.normal(0, 2, (200, 1))) * -np.log(keeps)
    chosen = allocate(errors, np.tile(keeps, (200, 1)), 20.0)
    spent = keeps[chosen].sum()
    assert 19.8 <= spent <= 20.0 * (1 + 1e-9)
