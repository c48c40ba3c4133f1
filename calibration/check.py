"""What a plan with its thresholds keeps on samples, beside the k that it aims at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..patcher.binding.patching import apply_plan
from ..patcher.meter import Meter
from ..patcher.methods import Method
from ..patcher.thresholds import ModuleThresholds


def measure_kept(
    model: nn.Module,
    plan: Mapping[str, Method],
    thresholds: Mapping[str, ModuleThresholds],
    samples: Iterable[dict[str, Tensor]],
) -> Meter:
    """Runs the patched model on model inputs and counts what each module keeps.

    The model must not be patched, and is left as it was. Raises what apply_plan raises.
    """
    samples = list(samples)  # whatever makes them may run the model
    with apply_plan(model, plan, thresholds) as patch, torch.inference_mode(), patch.metered(Meter()) as meter:
        for inputs in samples:
            model(**inputs, use_cache=False)
        patch.log_paths()
    return meter
