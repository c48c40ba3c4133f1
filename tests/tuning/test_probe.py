"""The residual stream that a probe follows."""

from __future__ import annotations

import torch
from hf_sparsify.tuning.probe import Probe
from torch import nn


def test_a_layer_may_get_its_input_on_another_device() -> None:
    layer = nn.ModuleList([nn.Linear(2, 2, device="meta")])[0]
    probe = Probe(nn.Sequential(layer), [], lambda seen: None)
    probe._keep_stream(layer, (torch.ones(1, 3, 2),), {})
    output = torch.ones(1, 3, 2, device="meta")
    assert probe._stream_after(layer, output).device == output.device
