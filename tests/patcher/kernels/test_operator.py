"""The operators of compiled graphs: they compute what the methods compute, and their fakes are like the real ones."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from asking_nothing import asking_nothing
from hf_sparsify.errors import NotPatchableError, RecipeMismatchError
from hf_sparsify.patcher.kernels import feed_forward as feed_forward_kernel
from hf_sparsify.patcher.kernels import operator
from hf_sparsify.patcher.kernels.operator import attention, call_text, feed_forward, table_tensors
from hf_sparsify.patcher.methods import (
    AttentionInputs,
    AttentionMethod,
    Clustered,
    ClusteredPlain,
    FullMask,
    TopK,
    TopKFeedForward,
    TopTheta,
    attend_rows,
)
from hf_sparsify.patcher.thresholds import ModuleThresholds
from live_storage import LiveStorage
from tiny_models import attention_inputs, visible_keys
from torch import Tensor

NAME = "layers.3.attn"
OFFLINE = TopTheta(k=2, placement="max-relative", compensation="sdc", denominator="offline")

METHODS: dict[str, AttentionMethod | None] = {
    "dense": None,
    "top-k": TopK(k=2),
    "means of values": TopK(keep=0.3, compensation="sdc+vmc", v_mean="dropped"),
    "top-theta": TopTheta(k=2, compensation="sdc+vmc"),
    "offline": OFFLINE,
    "rounded": TopTheta(k=2, compensation="sdc", denominator="rounded"),
    "clustered": Clustered(clusters=3, k=2),
    "clustered-plain": ClusteredPlain(clusters=3),
}


def table(method: AttentionMethod | None, theta: float = -1.5, longest: int = 64, **fields: Any) -> Any:
    if not isinstance(method, TopTheta):
        return None
    dropped = torch.full((4, 1), 0.4) if method.denominator == "offline" else None
    return ModuleThresholds(
        torch.tensor([1.0]), torch.full((4, 1), theta), 1, longest, method.placement, dropped=dropped, **fields
    )


def arguments(
    call: AttentionInputs, method: AttentionMethod | None, thresholds: Any, name: str = NAME
) -> tuple[Any, ...]:
    """What the operator takes, for a call and a module."""
    seen, gaps, visible = call.visibility, None, None
    if isinstance(seen, FullMask):
        first = last = torch.zeros(call.query.shape[0], call.query.shape[2], dtype=torch.int64)
        gaps, visible = torch.tensor(True), seen.visible
    else:
        first, last = seen.first, seen.last
    inputs = (call.query, call.key, call.value, first, last, gaps, visible, call.bias, call.sinks)
    text = call_text(name, method, thresholds)
    return (*inputs, table_tensors(thresholds, call.query.device), call.scale, call.softcap, text)


def expected(call: AttentionInputs, method: AttentionMethod | None, thresholds: Any) -> Tensor:
    out = attend_rows(call)[0] if method is None else method.attend(call, thresholds=thresholds)[0]
    return out.transpose(1, 2)


def problem(layout: str, method: AttentionMethod | None, **fields: Any) -> AttentionInputs:
    whole = isinstance(method, ClusteredPlain)
    return attention_inputs("all" if whole else layout, dtype=torch.float32, width=8, **fields)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("layout", ["causal", "left", "window", "full"])
@pytest.mark.parametrize("queries", [1, 7])
def test_it_computes_what_the_method_computes(layout: str, method: AttentionMethod | None, queries: int) -> None:
    if isinstance(method, ClusteredPlain) and (queries == 1 or layout != "causal"):
        pytest.skip("clustered attention is of whole sequences")
    thresholds = table(method)
    call = problem(layout, method, queries=queries)
    out = attention(*arguments(call, method, thresholds))
    assert out.is_contiguous()
    torch.testing.assert_close(out, expected(call, method, thresholds), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize(
    ("layout", "fields"),
    [("causal", {}), ("full", {"queries": 1}), ("left", {"bias": True, "sinks": True, "softcap": 2.0})],
    ids=["causal", "a step", "all there is"],
)
def test_torch_finds_nothing_wrong_with_it(layout: str, fields: dict[str, Any], method: AttentionMethod | None) -> None:
    if isinstance(method, ClusteredPlain) and fields:
        pytest.skip("clustered attention is of whole sequences, without sinks")
    torch.library.opcheck(attention, arguments(problem(layout, method, **fields), method, table(method)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("queries", [1, 7])
def test_the_fake_has_shape_strides_and_dtype_of_the_real_one(queries: int, dtype: torch.dtype) -> None:
    call = attention_inputs("left", queries=queries, dtype=dtype, width=8)
    given = arguments(call, TopK(k=2), None)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = attention(*(mode.from_tensor(part) if isinstance(part, Tensor) else part for part in given))
    real = attention(*given)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


def test_a_mask_is_read_only_where_the_ranges_do_not_say_it_all() -> None:
    method = TopK(k=2)
    call = problem("left", method)
    given = list(arguments(call, method, None))
    seen = visible_keys(call.visibility, 2, 1, 7, 7)
    exact = attention(*given)
    given[5:7] = [torch.tensor(False), torch.zeros_like(seen)]
    assert torch.equal(attention(*given), exact)
    given[5:7] = [torch.tensor(True), seen]
    torch.testing.assert_close(attention(*given), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [None, TopK(k=2), TopTheta(k=2)], ids=["dense", "top-k", "top-theta"])
@pytest.mark.parametrize("layout", ["left", "full"])
def test_it_looks_at_no_tensor_that_cannot_be_asked(
    layout: str, method: AttentionMethod | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "kernel_of", lambda method, device: None)
    thresholds, call = table(method), problem(layout, method)
    given = arguments(call, method, thresholds)
    with asking_nothing():
        out = attention._init_fn(*given)  # a mode sees the operator, and not what is in it
    torch.testing.assert_close(out, expected(call, method, thresholds), rtol=1e-4, atol=1e-5)


def test_on_a_gpu_nothing_outlives_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would lie in the memory of the CUDA graph that the first call of a compiled step is made for."""
    monkeypatch.setattr(operator, "kernel_of", lambda method, device: None)
    call = problem("left", OFFLINE)
    given = arguments(call, OFFLINE, table(OFFLINE))
    with asking_nothing(), LiveStorage() as storage:
        out = attention._init_fn(*given)
        assert storage.live > 0
        del out
        assert storage.live == 0


def test_the_tables_of_one_module_are_not_mixed_up() -> None:
    call = problem("causal", OFFLINE)
    for theta in (-1.5, -0.2, -1.5):
        thresholds = table(OFFLINE, theta)
        out = attention(*arguments(call, OFFLINE, thresholds))
        torch.testing.assert_close(out, expected(call, OFFLINE, thresholds), rtol=1e-4, atol=1e-5)
    without = replace(OFFLINE, denominator="exact")
    out = attention(*arguments(call, without, table(without)))
    torch.testing.assert_close(out, expected(call, without, table(without)), rtol=1e-4, atol=1e-5)


def test_what_a_method_refuses_is_refused_with_the_modules_name() -> None:
    method = Clustered(clusters=3, k=2)
    call = attention_inputs("causal", dtype=torch.float32, width=8)
    with pytest.raises(NotPatchableError, match=rf"{NAME}: clustered attention needs every query"):
        attention(*arguments(call, method, None))


def test_thresholds_of_another_scale_are_refused() -> None:
    method = TopTheta(k=2)
    with pytest.raises(RecipeMismatchError, match=rf"{NAME} are for scores scaled by 0.5, and the model scales by 0.7"):
        attention(*arguments(problem("causal", method), method, table(method, scale=0.5)))


def test_rows_outside_the_table_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    method = TopTheta(k=2)
    call = problem("causal", method)
    with caplog.at_level(logging.WARNING):
        for name in (NAME, NAME, "layers.4.attn"):
            attention(*arguments(call, method, table(method, longest=5), name))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        f"rows see fewer than 1 or more than 5 keys, the range that was calibrated ({NAME})"
    ]


@dataclass(frozen=True)
class Other(TopK):
    """A class of method that no recipe has."""


def test_only_methods_that_can_be_read_back_have_a_text() -> None:
    assert call_text(NAME, Other(k=2)) is None
    assert call_text(NAME, TopK(k=2)) is not None


# Feed-forward


def layer(weight_is_rows: bool, tokens: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [2, tokens, 40], a weight to 16 as the module has it, and a bias."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, tokens, 40, generator=generator)
    weight = torch.randn(40, 16, generator=generator)
    weight = weight if weight_is_rows else weight.t().contiguous()
    return hidden.to(dtype), weight.to(dtype), torch.randn(16, generator=generator).to(dtype)


@pytest.mark.parametrize("weight_is_rows", [False, True])
@pytest.mark.parametrize("tokens", [0, 1, 9])
@pytest.mark.parametrize(
    "method", [TopKFeedForward(k=4), TopKFeedForward(keep=0.3), TopKFeedForward(keep=1.0)], ids=str
)
@pytest.mark.parametrize("native", [True, False])
def test_feed_forward_is_what_the_method_says(
    native: bool, method: TopKFeedForward, tokens: int, weight_is_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(feed_forward_kernel, "native", lambda: None)
    hidden, weight, bias = layer(weight_is_rows, tokens)
    expected = method.mask(hidden) @ (weight if weight_is_rows else weight.t())
    for added in (None, bias):
        out = feed_forward(hidden, weight, added, weight_is_rows, method.k, method.keep)
        torch.testing.assert_close(out, expected if added is None else expected + added, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("weight_is_rows", [False, True])
@pytest.mark.parametrize("keep", [0.1, 1.0])
def test_torch_finds_nothing_wrong_with_feed_forward(keep: float, weight_is_rows: bool) -> None:
    hidden, weight, bias = layer(weight_is_rows)
    torch.library.opcheck(feed_forward, (hidden, weight, bias, weight_is_rows, None, keep))
    torch.library.opcheck(feed_forward, (hidden.transpose(0, 1), weight, None, weight_is_rows, 3, None))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [0, 1, 9])
def test_the_fake_of_feed_forward_is_like_the_real_one(tokens: int, dtype: torch.dtype) -> None:
    for hidden in (layer(False, tokens, dtype)[0], layer(False, tokens, dtype)[0].transpose(0, 1)):
        given = (hidden, *layer(False, tokens, dtype)[1:])
        with torch._subclasses.FakeTensorMode() as mode:
            fake = feed_forward(*map(mode.from_tensor, given), False, 4, None)
        real = feed_forward(*given, False, 4, None)
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
