"""Interception is there for the one module while its forward runs, and then gone, however that ends."""

from __future__ import annotations

import pytest
import torch
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.methods import TopK
from own_attention import (
    OwnAttention,
    expected,
    patched,
    problem,
    sdpa,
)
from torch import Tensor, nn
from torch.nn import functional as F  # as torch's own code calls it
from torch.overrides import _get_current_function_mode


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_call_that_ends_early_leaves_no_mode(error: type[BaseException]) -> None:
    def failing(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        raise error

    module, patch = patched(failing, TopK(k=3))
    with pytest.raises(error):
        module(*problem())
    module.calculate = sdpa
    out = module(*problem())
    torch.testing.assert_close(out, expected(TopK(k=3), *problem(), causal=False), rtol=1e-4, atol=1e-5)
    assert _get_current_function_mode() is None
    assert patch.calls == 1


def test_only_the_module_itself_is_intercepted() -> None:
    module, _ = patched(sdpa, TopK(k=3))
    query, key, value = problem()
    other = OwnAttention(sdpa)
    dense = other(query, key, value)
    module(query, key, value)
    assert torch.equal(other(query, key, value), dense)


class SdpaAttention(nn.Module):
    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value)


def test_hooks_of_a_person_see_the_sparse_output_and_stay() -> None:
    model = nn.Sequential(SdpaAttention())
    seen: list[Tensor] = []
    model[0].register_forward_hook(lambda module, args, output: seen.append(F.softmax(output, -1)))
    apply_plan(model, {"0": TopK(k=3)})
    out = model[0](*problem())
    torch.testing.assert_close(seen[0], F.softmax(out, -1))
    torch.testing.assert_close(out, expected(TopK(k=3), *problem(), causal=False), rtol=1e-4, atol=1e-5)
    remove_patch(model)
    assert (len(model[0]._forward_hooks), len(model[0]._forward_pre_hooks)) == (1, 0)


def test_unpatching_ends_an_interrupted_call() -> None:
    model = nn.Sequential(SdpaAttention())
    apply_plan(model, {"0": TopK(k=3)})
    with pytest.raises(KeyboardInterrupt):
        model[0](*problem()[:2], Interrupting())
    assert _get_current_function_mode() is not None
    remove_patch(model)
    assert _get_current_function_mode() is None


class Interrupting(torch.Tensor):
    """Stands for a person who presses Ctrl-C while the attention is computed."""

    @property
    def ndim(self) -> int:
        raise KeyboardInterrupt
