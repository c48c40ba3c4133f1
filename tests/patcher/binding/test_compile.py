"""torch.compile of models: patched or not, they give what they give uncompiled, and no graph outlives its patch."""

from __future__ import annotations

from collections.abc import Iterator

import hf_sparsify
import pytest
import torch
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.binding.patching import current_patch
from hf_sparsify.patcher.meter import Meter
from hf_sparsify.patcher.methods import AttentionMethod, Clustered, TopK, TopKFeedForward, TopTheta
from patched_models import close, far, one_layer
from tiny_models import inputs, logits
from transformers import PreTrainedModel

METHODS: dict[str, tuple[AttentionMethod, ...]] = {
    "llama": (TopK(k=3), TopTheta(k=2)),
    "bert": (Clustered(clusters=3, k=2),),
    "t5": (TopTheta(k=2),),
}


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def without_cache(name: str) -> PreTrainedModel:
    model = one_layer(name)
    model.config.use_cache = False
    return model


@pytest.mark.parametrize("name", ["llama", "bert", pytest.param("t5", marks=pytest.mark.slow)])
def test_a_compiled_model_follows_patching_and_unpatching(name: str) -> None:
    """Dense, every method, dense, feed-forward, dense again, all in one compiled model."""
    model = without_cache(name)
    compiled = torch.compile(model, backend="eager")
    call = inputs(name, "right")
    dense = logits(model, call)
    close(logits(compiled, call), dense)
    for method in METHODS[name]:
        with hf_sparsify.patch(model, method):
            sparse = logits(model, call)
            assert far(sparse, dense)
            close(logits(compiled, call), sparse)
    close(logits(compiled, call), dense)
    with hf_sparsify.patch(model, None, TopKFeedForward(k=4)):
        sparse = logits(model, call)
        assert far(sparse, dense)
        close(logits(compiled, call), sparse)
    close(logits(compiled, call), dense)


@pytest.mark.slow
def test_inductor_runs_both_operators() -> None:
    model, call = without_cache("llama"), inputs("llama", "right", length=9)
    dense = logits(model, call)
    with torch._inductor.config.patch(compile_threads=1):  # workers take longer to start than so little to compile
        compiled = torch.compile(model, fullgraph=True)
        with hf_sparsify.patch(model, TopK(k=3), TopKFeedForward(k=4)):
            sparse = logits(model, call)
            assert far(sparse, dense)
            close(logits(compiled, call), sparse)
        close(logits(compiled, call), dense)


def test_a_compiled_model_is_patched_counted_and_unpatched_itself() -> None:
    model, call = without_cache("bert"), inputs("bert", "right")
    compiled = torch.compile(model, backend="eager")
    patch = hf_sparsify.patch(compiled, TopK(k=3), TopKFeedForward(k=4))  # type: ignore[arg-type]
    assert [module.name for module in patch.module_patches] == [
        "bert.encoder.layer.0.attention.self",
        "bert.encoder.layer.0.output.dense",
    ]
    with patch.metered(Meter()) as counted:
        logits(compiled, call)
    with patch.metered(Meter()) as expected:
        logits(model, call)
    assert counted.summary() == expected.summary()
    assert [module.calls for module in patch.module_patches] == [2, 2]
    hf_sparsify.unpatch(compiled)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="not patched"):
        current_patch(model)
