"""The native feed-forward kernel against its definition in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from feed_forward_models import call_of, every_layer, make, output
from feed_forward_oracle import LEVELS, Call, assert_exact, calls
from hf_sparsify.patcher.binding.feed_forward import FeedForwardPatch
from hf_sparsify.patcher.binding.patching import apply_plan
from hf_sparsify.patcher.kernels import feed_forward as kernel
from hf_sparsify.patcher.kernels.feed_forward import project, refusal
from hf_sparsify.patcher.kernels.library import describe, native
from hf_sparsify.patcher.methods import TopKFeedForward
from hypothesis import given, settings
from patched_models import close
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

needs_native = pytest.mark.skipif(native() is None, reason=f"needs the native library: {describe()}")

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(autouse=True)
def outputs_start_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel does not write shows."""
    empty = torch.empty
    monkeypatch.setattr(kernel.torch, "empty", lambda *shape, **options: empty(*shape, **options).fill_(math.nan))


def check(hidden: Tensor, rows: Tensor, bias: Tensor | None, k: int, threads: int = 1) -> None:
    assert_exact(project(hidden, rows, bias, k, threads=threads), hidden, rows, bias, k)


TOKENS, WIDTHS = (0, 1, 2, 3, 5, 16, 17, 33, 70), (1, 2, 7, 15, 16, 17, 40, 129, 1030, 1531)


@needs_native
@settings(max_examples=250, deadline=None, derandomize=True)
@given(calls(TOKENS, WIDTHS, DTYPES))
def test_random_calls(call: Call) -> None:
    check(*call)


@needs_native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("d_ff", [40, 2048])
def test_among_equals_the_first_are_kept(dtype: torch.dtype, d_ff: int) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.tensor(LEVELS)[torch.randint(len(LEVELS), (20, d_ff), generator=generator)].to(dtype)
    rows = torch.eye(d_ff, dtype=dtype)
    for k in (1, 5, d_ff // 8, d_ff // 2):
        out = project(hidden, rows, None, k)
        assert torch.equal(out, TopKFeedForward(k=k).mask(hidden))


@needs_native
@pytest.mark.parametrize("d_ff", [40, 2048])
def test_a_nan_spoils_its_token_alone_and_infinities_act_as_in_the_dense_product(d_ff: int) -> None:
    hidden = torch.randn(9, d_ff, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(d_ff, 24, generator=torch.Generator().manual_seed(1))
    rows[7, 3] = 0
    hidden[1, d_ff - 1] = math.nan
    hidden[2, 0], hidden[2, 1] = -math.nan, math.inf
    hidden[4, 7] = math.inf
    hidden[5, 7], hidden[5, 9] = math.inf, -math.inf
    hidden[6] = -math.inf
    hidden[7] = 0
    hidden[7, 5] = math.nan
    check(hidden, rows, torch.ones(24), 4)
    out = project(hidden, rows, None, 4)
    dense = TopKFeedForward(k=4).mask(hidden) @ rows
    whole = [0, 3, 4, 5, 6, 8]
    torch.testing.assert_close(out[whole], dense[whole], equal_nan=True)
    assert bool(out[[1, 2, 7]].isnan().all())


@needs_native
@pytest.mark.parametrize("threads", [1, 2, 5, 40])
@pytest.mark.parametrize("tokens", [1, 40, 1100])
def test_threads_change_nothing(threads: int, tokens: int) -> None:
    hidden = torch.randn(tokens, 96, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(96, 264, generator=torch.Generator().manual_seed(1))
    assert torch.equal(project(hidden, rows, None, 10, threads=threads), project(hidden, rows, None, 10, threads=1))
    check(hidden[-3:], rows, None, 10, threads)


@needs_native
def test_any_layout_of_what_is_given() -> None:
    base = torch.randn(4, 6, 2, 80, generator=torch.Generator().manual_seed(0))
    rows, bias = torch.randn(40, 16, generator=torch.Generator().manual_seed(1)), torch.randn(32)[::2]
    for hidden in (base[..., ::2], base[:, :, 1, 40:], base[0, 0, 0, :40], base[:1, :1, :1, :40].expand(2, 3, 2, 40)):
        check(hidden, rows, bias, 5)
        check(hidden, rows.t().contiguous().t(), None, 5)
    check(base[..., :40].transpose(0, 2), torch.randn(40, 48)[:, 8:24], bias, 5)


@needs_native
@pytest.mark.parametrize(
    ("hidden", "rows", "bias", "options"),
    [
        (torch.ones(2, 8), torch.ones(9, 8), None, {}),
        (torch.ones(2, 8), torch.ones(8, 12), None, {}),
        (torch.ones(2, 8), torch.ones(8, 8), torch.ones(9), {}),
        (torch.ones(2, 8), torch.ones(8, 8).bfloat16(), None, {}),
        (torch.ones(2, 8).half(), torch.ones(8, 8).half(), None, {}),
        (torch.ones(2, 8), torch.ones(8, 8), None, {"k": 0}),
        (torch.ones(2, 8), torch.ones(8, 8), None, {"threads": 0}),
    ],
    ids=["activations", "outputs", "bias", "two types", "half", "k", "threads"],
)
def test_what_does_not_fit_is_an_error(hidden: Tensor, rows: Tensor, bias: Tensor | None, options: Any) -> None:
    with pytest.raises(ValueError, match=r"fit|at least 1"):
        project(hidden, rows, bias, **{"k": 1, **options})


@needs_native
def test_what_goes_the_torch_way_says_why() -> None:
    some, hidden, rows = TopKFeedForward(k=4), torch.ones(3, 40), torch.ones(40, 16)
    assert refusal(hidden, rows, some) is None
    assert refusal(hidden.bfloat16(), rows.bfloat16(), some) is None
    assert refusal(hidden.double(), rows.double(), some) == "stored as float64"
    assert refusal(hidden, rows.bfloat16(), some) == "float32 activations, bfloat16 weights"
    assert refusal(hidden.to("meta"), rows, some) == "on meta"
    assert refusal(hidden, rows[:, :12], some) == "size 40 to 12"
    assert refusal(hidden, rows[:39], some) == "sizes that do not match"
    assert refusal(hidden, rows.clone().requires_grad_(), some) == "gradients"
    assert refusal(hidden, rows, TopKFeedForward(k=40)) == "all activations kept"


def test_without_the_library_everything_goes_the_torch_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "native", lambda: None)
    assert refusal(torch.ones(3, 40), torch.ones(40, 16), TopKFeedForward(k=4)) == "no native library"
    with pytest.raises(ValueError, match="not available"):
        project(torch.ones(3, 40), torch.ones(40, 16), None, 4)


# In a patched model


def paths(model: nn.Module) -> dict[str, int]:
    """All ways that calls of a patched model went."""
    taken: dict[str, int] = {}
    for module in model.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, FeedForwardPatch):
            for path, count in forward.paths.items():
                taken[path] = taken.get(path, 0) + count
    return taken


@needs_native
@pytest.mark.parametrize("name", ["llama", "gpt2", "bart"])
def test_a_patched_model_takes_the_kernel_and_gives_what_torch_gives(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = make(name), call_of(name)
    apply_plan(model, every_layer(model, TopKFeedForward(k=4)))
    sparse = output(model, call)
    assert set(paths(model)) == {"native"}
    monkeypatch.setattr(kernel, "native", lambda: None)
    close(sparse, output(model, call))
    assert paths(model)["native"] == paths(model)["torch: no native library"] > 0


def test_every_other_way_is_counted_with_its_reason() -> None:
    reasons = {}
    for reason, module, hidden in (
        ("autocast", nn.Linear(40, 16), torch.randn(2, 40)),
        ("gradients", nn.Linear(40, 16), torch.randn(2, 40)),
        ("no tokens", nn.Linear(40, 16), torch.randn(0, 40)),
        ("float32 activations, float64 weights", Conv1D(16, 40).double(), torch.randn(2, 40)),
        ("a Bilinear", nn.Bilinear(40, 40, 16), torch.randn(2, 40)),
    ):
        patch = FeedForwardPatch("layer", module, TopKFeedForward(k=4))
        patch.active = True
        with torch.set_grad_enabled(reason == "gradients"), torch.autocast("cpu", enabled=reason == "autocast"):
            try:
                patch(hidden, *([hidden] if reason == "a Bilinear" else []))
            except RuntimeError:  # as the dense layer fails
                assert "float64" in reason
        reasons[reason] = dict(patch.paths)
    assert reasons == {reason: {f"torch: {reason}": 1} for reason in reasons}


@needs_native
def test_a_bias_that_is_trained_alone_gets_its_gradient() -> None:
    module = nn.Linear(40, 16)
    module.weight.requires_grad_(False)
    patch = FeedForwardPatch("layer", module, TopKFeedForward(k=4))
    patch.active = True
    patch(torch.randn(2, 40)).sum().backward()
    assert module.bias.grad is not None
    assert dict(patch.paths) == {"torch: gradients": 1}
