"""Top-k feed-forward by Triton against its definition in float64, on a GPU or interpreted."""

from __future__ import annotations

import gc
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from feed_forward_models import call_of, every_layer, make, output
from feed_forward_oracle import LEVELS, Call, assert_exact, calls
from hf_sparsify.errors import UsageError
from hf_sparsify.patcher.binding import feed_forward as binding
from hf_sparsify.patcher.binding.patching import apply_plan, remove_patch
from hf_sparsify.patcher.kernels import feed_forward_kernel_of, operator
from hf_sparsify.patcher.kernels.weight_rows import copies
from hf_sparsify.patcher.methods import TopKFeedForward
from hypothesis import given, settings
from live_storage import LiveStorage
from patched_models import close
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from triton_needs import built

pytest.importorskip("triton")

from hf_sparsify.patcher.kernels import triton_feed_forward as kernel
from hf_sparsify.patcher.kernels.triton_feed_forward import project, refusal
from hf_sparsify.patcher.kernels.triton_weight_rows import DeviceRows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TOKENS, WIDTHS = (0, 1, 2, 3), (1, 2, 7, 16, 40, 129, 300, 5000)


@pytest.fixture(autouse=True)
def outputs_start_as_nan(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels do not write shows."""
    empty = torch.empty

    def filled(*shape: Any, **options: Any) -> Tensor:
        made = empty(*shape, **options)
        return made.fill_(math.nan if made.is_floating_point() else -1)

    monkeypatch.setattr(kernel.torch, "empty", filled)


@pytest.fixture(autouse=True)
def small_layers_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "LEAST_SAVED", 0)


def check(hidden: Tensor, rows: Tensor, bias: Tensor | None, k: int, *, is_rows: bool = False) -> None:
    weight = rows if is_rows else rows.t().contiguous()
    out = project(hidden.to(DEVICE), weight.to(DEVICE), None if bias is None else bias.to(DEVICE), k, is_rows=is_rows)
    assert_exact(out.cpu(), hidden, rows, bias, k, truncated=DEVICE == "cpu")  # bf16, by Triton's interpreter


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(calls(TOKENS, WIDTHS, DTYPES))
def test_random_calls(call: Call) -> None:
    check(call.hidden, call.rows, call.bias, min(call.k, call.hidden.shape[1]), is_rows=call.threads % 2 == 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_among_equals_the_first_are_kept(dtype: torch.dtype) -> None:
    """Over the end of a block of activations, too."""
    d_ff = 4200
    generator = torch.Generator().manual_seed(0)
    hidden = torch.tensor(LEVELS)[torch.randint(len(LEVELS), (2, d_ff), generator=generator)].to(dtype)
    hidden[1] = 1.0
    hidden[1, 4099] = 2.0
    positions = torch.arange(d_ff).remainder(2039)
    rows = torch.nn.functional.one_hot(positions, 2039)[:, :90].to(dtype)
    for k in (5, 4098):
        out = project(hidden.to(DEVICE), rows.to(DEVICE), None, k, is_rows=True)
        expected = (TopKFeedForward(k=k).mask(hidden).double() @ rows.double()).to(dtype)
        assert torch.equal(out.cpu(), expected)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of NumPy, which interprets
def test_a_nan_spoils_its_token_alone_and_infinities_act_as_in_the_dense_product() -> None:
    d_ff = 40
    hidden = torch.randn(6, d_ff, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(d_ff, 24, generator=torch.Generator().manual_seed(1))
    rows[7, 3] = 0
    hidden[1, d_ff - 1] = math.nan
    hidden[2, 0], hidden[2, 1] = -math.nan, math.inf
    hidden[3, 7] = math.inf
    hidden[4, 7], hidden[4, 9] = math.inf, -math.inf
    hidden[5] = 0
    check(hidden, rows, torch.ones(24), 4)


def test_zeros_do_not_meet_a_weight() -> None:
    hidden = torch.zeros(2, 40)
    hidden[0, 3] = 1.5
    rows = torch.full((40, 24), math.nan)
    rows[3] = 2.0
    assert project(hidden.to(DEVICE), rows.to(DEVICE), None, 4, is_rows=True).tolist() == [[3.0] * 24, [0.0] * 24]


class Unwaiting(TorchDispatchMode):
    """Where nothing may be read back from the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    hidden, weight = torch.randn(1, 40, device=DEVICE), torch.randn(16, 40, device=DEVICE)
    with Unwaiting():
        for _ in range(2):
            assert refusal(hidden, weight.t(), TopKFeedForward(k=4)) is None
            project(hidden, weight, torch.ones(16, device=DEVICE), 4)


@pytest.mark.parametrize("programs", [1, 7, 10**4])
def test_how_rows_are_shared_out_changes_rounding_alone(programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "PROGRAMS", programs)
    generator = torch.Generator().manual_seed(0)
    check(torch.randn(2, 700, generator=generator), torch.randn(700, 136, generator=generator), torch.ones(136), 600)


def test_any_layout_of_what_is_given() -> None:
    base = torch.randn(4, 6, 2, 80, generator=torch.Generator().manual_seed(0))
    rows, bias = torch.randn(40, 13, generator=torch.Generator().manual_seed(1)), torch.randn(26)[::2]
    some = base[:1, :1, :1, :40]
    for hidden in (base[:1, :2, :, ::2], base[:2, :1, 1, 40:], some[0, 0, 0], some.expand(2, 1, 1, 40)):
        check(hidden, rows, bias, 5)
        check(hidden, rows, bias, 5, is_rows=True)
    hidden, wide = base[0, :2, 0, :40].to(DEVICE), torch.randn(40, 48).to(DEVICE)
    for view in (wide[:, 8:24], wide[:, ::3]):
        for weight, is_rows in ((view, True), (view.t(), False)):
            assert_exact(project(hidden, weight, None, 5, is_rows=is_rows).cpu(), hidden.cpu(), view.cpu(), None, 5)


@pytest.mark.parametrize("k", [0, 9])
def test_what_does_not_go_together_is_an_error(k: int) -> None:
    with pytest.raises(UsageError, match="do not go with k"):
        project(torch.ones(2, 8, device=DEVICE), torch.ones(8, 8, device=DEVICE), None, k)
    with pytest.raises(UsageError, match="do not go with k"):
        project(torch.ones(2, 9, device=DEVICE), torch.ones(8, 8, device=DEVICE), None, 2)


def test_what_goes_the_torch_way_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    some, hidden, rows = TopKFeedForward(k=4), torch.ones(3, 40, device=DEVICE), torch.ones(40, 13, device=DEVICE)
    assert refusal(hidden, rows, some) is None
    assert refusal(hidden.half(), rows.half(), some) is None
    assert refusal(hidden.double(), rows.double(), some) == "stored as float64"
    assert refusal(hidden, rows.bfloat16(), some) == "float32 activations, bfloat16 weights"
    assert refusal(hidden.to("meta"), rows, some) == "on meta"
    assert refusal(hidden, rows.to("meta"), some) == f"on {DEVICE}"
    assert refusal(hidden, rows[:39], some) == "sizes that do not match"
    assert refusal(hidden, rows.clone().requires_grad_(), some) == "gradients"
    assert refusal(hidden, rows, TopKFeedForward(k=40)) == "all activations kept"
    assert refusal(hidden, rows, TopKFeedForward(k=7)) == "as many rows kept as the dense product reads"
    monkeypatch.setattr(kernel, "LEAST_SAVED", 16 * 13 * 4)  # three tokens have 24 of the 40 rows
    assert refusal(hidden, rows, some) is None
    assert refusal(hidden, rows[:, :12], some) == refusal(hidden.half(), rows.half(), some) == "too few bytes left out"
    monkeypatch.setattr(kernel, "obstacle", lambda: "no Triton")
    assert refusal(hidden, rows, some) == "no Triton"


def test_which_layers_are_large_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    for d_model, d_ff, reason in ((768, 3072, "too few bytes left out"), (4096, 14336, None)):
        hidden, rows = torch.empty(1, d_ff, dtype=torch.bfloat16), torch.empty(d_ff, d_model, dtype=torch.bfloat16)
        monkeypatch.setattr(kernel, "runs_on", lambda device: True)
        assert refusal(hidden, rows, TopKFeedForward(k=d_ff // 16)) == reason


# In a patched model


@pytest.fixture
def triton_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were a GPU."""
    for module in (binding, operator):
        monkeypatch.setattr(module, "feed_forward_kernel_of", lambda device: kernel)


def test_a_patched_model_takes_the_kernel_and_gives_what_torch_gives(
    triton_everywhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = make("llama"), {name: part[:1, :3] for name, part in call_of("llama").items()}
    monkeypatch.setattr(kernel, "FEWER_ROWS", 0)
    patches = apply_plan(model, every_layer(model, TopKFeedForward(k=4)))
    sparse = output(model, call)
    assert set(patches.paths) == {"triton"}
    weights = [target.module.weight for target in binding.feed_forward_modules(model)]
    assert all(isinstance(copies[weight], DeviceRows) for weight in weights)
    monkeypatch.setattr(kernel, "obstacle", lambda: "no Triton")
    close(sparse, output(model, call))
    assert patches.paths["triton"] == patches.paths["torch: no Triton"] > 0
    remove_patch(model)
    assert not any(weight in copies for weight in weights)


def test_a_call_of_a_patched_model_leaves_nothing_alive(triton_everywhere: None) -> None:
    """What lives on could not be recorded as a CUDA graph. Until the copy is unpatched, it stays where it is."""
    model, method = make("llama"), TopKFeedForward(k=4)
    weight = binding.feed_forward_modules(model)[0].module.weight
    patches = apply_plan(model, every_layer(model, method))
    place = copies[weight].rows.data_ptr()
    hidden = torch.randn(1, weight.shape[1])
    with LiveStorage() as storage:
        out = kernel.project_kept(hidden, weight, None, False, method, False)
        assert storage.live > 0
        del out
        gc.collect()  # the interpreter's cycles
        assert storage.live == 0
    assert copies[weight].rows.data_ptr() == place
    with patches.paused():
        assert weight not in copies
    assert weight in copies


def test_only_layers_that_read_a_copy_have_one(triton_everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    lying = nn.Parameter(torch.randn(40, 16).t())
    kernel.prepare(lying, TopKFeedForward(k=4))
    kernel.prepare(nn.Parameter(torch.randn(16, 40, device="meta")), TopKFeedForward(k=4))
    weight = nn.Parameter(torch.randn(16, 40))
    kernel.prepare(weight, TopKFeedForward(k=40))
    monkeypatch.setattr(kernel, "LEAST_SAVED", 2**25)
    kernel.prepare(weight, TopKFeedForward(k=4))
    assert lying not in copies
    assert weight not in copies
    for name in ("gpt2", "llama"):
        model = make(name)
        apply_plan(model, every_layer(model, TopKFeedForward(k=4)))
        assert not any(target.module.weight in copies for target in binding.feed_forward_modules(model))


def test_calls_on_a_gpu_are_its_calls() -> None:
    assert feed_forward_kernel_of("cuda") is kernel
    assert feed_forward_kernel_of("cpu") is feed_forward_kernel_of("mps") is not kernel


def test_autocast_of_the_device_of_the_call_counts() -> None:
    hidden: Any = SimpleNamespace(device=torch.device("cuda"))
    with torch.autocast("cpu"):
        assert binding.autocasts(torch.randn(2, 40))
        assert not binding.autocasts(hidden)
        assert not binding.autocasts(torch.randn(2, 40, device="meta"))
    torch.set_autocast_enabled("cuda", True)
    try:
        assert binding.autocasts(hidden)
        assert not binding.autocasts(torch.randn(2))
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("is_rows", [False, True])
def test_the_operator_takes_the_kernel(is_rows: bool, triton_everywhere: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "project", lambda hidden, *rest, **named: hidden.new_full((1, 16), 7.0))
    hidden, weight = torch.randn(1, 40), torch.randn((40, 16) if is_rows else (16, 40))
    assert bool((operator.feed_forward(hidden, weight, None, is_rows, 4, None) == 7).all())


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_compile_once_for_all_lengths_and_fit(capability: int) -> None:
    found = built("triton_feed_forward_calls", capability)
    names = [needs["kernel"] for needs in found]
    assert set(names) == {"_select_and_renew", "_add_rows", "_add_parts"}
    assert names.count("_add_rows") == 4  # three types, and rows at odd places
    for needs in found:
        assert needs["spilled"] <= 16, needs
