"""The fields of the clustered methods: how they are described, kept in a recipe, and refused."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.methods import (
    METHODS,
    Clustered,
    ClusteredPlain,
    method_from_dict,
    method_to_dict,
)


def test_names_descriptions_and_recipe_entries() -> None:
    assert ClusteredPlain(clusters=7).describe() == "7 clusters"
    assert ClusteredPlain(clusters=7, min_length=9).describe() == "7 clusters, dense below 9 tokens"
    assert Clustered(clusters=7, k=5).describe() == "7 clusters, k = 5"
    assert Clustered(clusters=7, k=5, min_length=9).describe() == "7 clusters, k = 5, dense below 9 tokens"
    assert (ClusteredPlain().refined, Clustered(k=5).refined) == (0, 5)
    for method in (ClusteredPlain(7, 2, 64, 3), Clustered(7, 2, 64, 3, 5)):
        assert METHODS[method.name] is type(method)
        assert method_from_dict(method_to_dict(method)) == method


@pytest.mark.parametrize("method", [ClusteredPlain, Clustered])
@pytest.mark.parametrize(
    ("field", "value"),
    [("clusters", 0), ("clusters", 2.0), ("clusters", True), ("clusters", "8"), ("clusters", None)]
    + [(field, value) for field in ("iterations", "min_length", "seed") for value in (-1, 0.5, True, None)],
)
def test_fields_outside_their_range_are_refused(method: type[ClusteredPlain], field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^{field} must be a whole number of at least {int(field == 'clusters')}"):
        method(**{field: value})


@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_a_k_outside_its_range_is_refused(k: Any) -> None:
    with pytest.raises(UsageError, match=r"^k must be a whole number of at least 1"):
        Clustered(k=k)
