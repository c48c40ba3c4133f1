"""The predicted KL divergence against the one that a small change of a module's output makes."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from hf_sparsify.tuning.gradients import output_gradients


def distributions(output: Any) -> list[torch.Tensor]:
    """The last dimension of each is one distribution for each outcome."""
    marks = [output.start_logits, output.end_logits] if "start_logits" in output else [output.logits]
    return [logits.double().log_softmax(-1) for logits in marks]


@pytest.mark.parametrize(
    ("family", "module", "count"), [("llama", "model.layers.0.self_attn", 10), ("bert", "bert.encoder.layer.1", 2)]
)
def test_half_the_mean_square_of_slope_times_change_is_the_kl_divergence(family: str, module: str, count: int) -> None:
    model = tiny_models.build(family)
    call = tiny_models.inputs(family, length=10, batch=1)
    slopes, outcomes = output_gradients(model, [module], call, torch.Generator().manual_seed(0), draws=400) or ({}, 0)
    shape = slopes[module][0].shape
    change = 0.01 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        dense = distributions(model(**call))

        def add(module: Any, args: Any, output: Any) -> Any:
            return output + change if isinstance(output, torch.Tensor) else (output[0] + change, *output[1:])

        handle = model.get_submodule(module).register_forward_hook(add)
        changed = distributions(model(**call))
        handle.remove()
    kl = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(dense, changed, strict=True))
    predicted = sum(float((slope * change).sum().double() ** 2) for slope in slopes[module]) / (2 * 400)
    assert outcomes == count
    assert kl > 1e-8
    assert predicted == pytest.approx(kl, rel=0.35)


def test_the_same_seed_draws_the_same() -> None:
    model, call = tiny_models.build("t5"), tiny_models.inputs("t5", batch=1)
    names = ["encoder.block.0.layer.0.SelfAttention", "decoder.block.0.layer.1.EncDecAttention"]
    first, second = (output_gradients(model, names, call, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert list(first[0]) == names
    for name in names:
        assert all(torch.equal(a, b) for a, b in zip(first[0][name], second[0][name], strict=True))
        assert any(bool(slope.any()) for slope in first[0][name])


def test_a_model_may_add_to_what_a_module_gives_in_place() -> None:
    model, call = tiny_models.build("llama"), tiny_models.inputs("llama", length=10, batch=1)
    names = ["model.layers.0.self_attn", "model.layers.0.mlp", "model.layers.1.mlp"]
    expected = output_gradients(model, names, call, torch.Generator().manual_seed(3))
    for layer in model.model.layers:
        layer.forward = in_place(layer)
    found = output_gradients(model, names, call, torch.Generator().manual_seed(3))
    assert expected is not None
    assert found is not None
    for name in names:
        torch.testing.assert_close(found[0][name], expected[0][name])


def in_place(layer: Any) -> Any:
    """The forward call of a Llama's layer with sums in place."""

    def forward(stream: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended = layer.self_attn(hidden_states=layer.input_layernorm(stream), **kwargs)[0]
        attended += stream
        output: torch.Tensor = layer.mlp(layer.post_attention_layernorm(attended))
        output += attended
        return output

    return forward
