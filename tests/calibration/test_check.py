"""Measuring what thresholds keep."""

from __future__ import annotations

import pytest
import tiny_models
from hf_sparsify.calibration.check import measure_kept
from hf_sparsify.calibration.options import CalibrationOptions
from hf_sparsify.calibration.run import calibrate_plan
from hf_sparsify.patcher.binding.modules import attention_modules
from hf_sparsify.patcher.binding.patching import MODEL_ATTRIBUTE
from hf_sparsify.patcher.methods import TopK
from hf_sparsify.patcher.methods.top_theta import PLACEMENTS
from score_chunks import samples


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "t5"])
def test_held_out_samples_keep_about_k(name: str, placement: str) -> None:
    model = tiny_models.build(name)
    plan = {module.name: TopK(k=6) for module in attention_modules(model)}
    made = calibrate_plan(model, plan, samples(name, range(30)), CalibrationOptions(placement))
    unpatched = (sample for sample in samples(name, range(100, 130)) if not hasattr(model, MODEL_ATTRIBUTE))
    meter = measure_kept(model, made.plan, made.thresholds, unpatched)
    assert set(meter.modules) == set(plan)
    assert meter.total().summary()["kept_per_k"] == pytest.approx(1, abs=0.05)
    assert not hasattr(model, MODEL_ATTRIBUTE)
