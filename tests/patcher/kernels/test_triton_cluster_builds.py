"""The Triton kernels of clustered attention compile for GPUs that are not there, and need no more than those have."""

from __future__ import annotations

from collections import Counter

import pytest
from triton_needs import built

pytest.importorskip("triton")

SPILLED = 64  # bytes a thread
WIDE_SPILLED = 192  # of _refine with rows of 256 float32, whose tiles are the smallest that there are


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_fit_a_gpu(capability: int) -> None:
    kernels = built("triton_cluster_calls", capability)
    # Queries' and keys' rows; a sample and all points; refined, plain and dense. None is there for a length of its own.
    assert Counter(kernel["kernel"] for kernel in kernels) == {
        "_sum_rows": 4,
        "_covariance": 2,
        "_project": 2,
        "_nearest": 4,
        "_means": 2,
        "_mean_queries": 2,
        "_attend": 3,
        "_settle": 3,
        "_refine": 4,
    }
    for kernel in kernels:
        assert kernel["spilled"] <= (WIDE_SPILLED if kernel["kernel"] == "_refine" else SPILLED), kernel
