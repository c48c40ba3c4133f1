"""Calibration options that do not go together are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hf_sparsify.calibration.options import CalibrationOptions
from hf_sparsify.errors import UsageError


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"placement": "softmax"}, "--placement must be one of post-softmax, max-relative, pre-softmax, not 'softmax'"),
        ({"estimator": "median"}, "--estimator must be one of count-matched, mean"),
        ({"estimator": None}, "--estimator must be one of"),
        ({"activations": "some"}, "--activations must be one of sparse, dense"),
        ({"denominator": "none"}, "--denominator must be one of exact, exp-threshold, offline"),
        ({"alpha": 0.1}, "--alpha 0.1 goes with --estimator mean"),
        ({"alpha": float("nan"), "estimator": "mean"}, "--alpha must be a finite number"),
        ({"denominator": "offline", "placement": "post-softmax"}, "goes with --placement max-relative or pre-softmax"),
    ],
)
def test_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        CalibrationOptions(**given)


def test_accepted() -> None:
    CalibrationOptions()
    CalibrationOptions("pre-softmax", "mean", -0.1, "dense", "offline")
    CalibrationOptions(denominator="offline")  # the modules may have another placement of their own
