"""The operations that are measured on a GPU: random inputs, ours, what it is compared with, and the work that the
definition asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from ..errors import SparsifyError
from ..patcher.kernels import feed_forward_kernel_of, kernel_of
from ..patcher.methods import AttentionInputs, Clustered, RowRanges, TopK, TopKFeedForward, TopTheta
from ..patcher.methods.chunk import RowCounts
from ..patcher.thresholds import ModuleThresholds
from .gpu_dense import EAGER, FLEX, SDPA, eager, flash, flex
from .op_cases import Checked, K, flat_rows, kept_share, length
from .op_inputs import exact, queries_at, thresholds

HEADS, GROUPS, WIDTH = 32, 8, 128
TOKENS, BATCHES = (4096, 16384, 65536, 131072), (1, 8)
LONG = 16384  # tokens from which on floors hold
CHECKED_ROWS = 8
# So few of random keys that the four heads of a group want a tenth of the values between them.
VALUE_SHARE, KEY_SHARE = 0.026, 0.1
FEED_FORWARD = (4096, 14336)  # d_model, d_ff
DENSE = "dense layer"


@dataclass(frozen=True)
class GpuCase:
    """One operation, and other ways to do it, by name. floor: how many times faster than the first of them it is to be.

    checked: some rows of the first sequence; None where nothing is. moved, multiplied: bytes and floating-point
    operations that the definition asks for, given what is kept; of clustered attention without the clustering.
    """

    name: str
    size: str
    ours: Callable[[], object]
    others: dict[str, Callable[[], object]]
    checked: Checked | None
    moved: float
    multiplied: float
    floor: float | None = None


@dataclass(frozen=True)
class Setup:
    """Where and in what sizes."""

    device: torch.device
    dtype: torch.dtype = torch.bfloat16
    heads: int = HEADS
    groups: int = GROUPS
    width: int = WIDTH
    clusters: Clustered = field(default_factory=lambda: Clustered(clusters=100, k=32))

    def random(self, generator: torch.Generator, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, dtype=self.dtype, generator=generator)

    def attention(self, batch: int, queries: int, keys: int, *, causal: bool = False) -> AttentionInputs:
        """Sequences whose scores are about standard normal."""
        random = torch.Generator(self.device).manual_seed(0)
        query = self.random(random, batch, self.heads, queries, self.width)
        key, value = (self.random(random, batch, self.groups, keys, self.width) for _ in range(2))
        ranges = RowRanges.causal if causal else RowRanges.all_keys
        return AttentionInputs(query, key, value, ranges(queries, keys, self.device), scale=self.width**-0.5)


def cases(setup: Setup, *, quick: bool) -> Iterator[tuple[str, Callable[[], GpuCase]]]:
    """Names, and what makes the cases: one's inputs at a time are in memory, and what does not fit has a name."""
    for tokens in TOKENS[:1] if quick else TOKENS:
        for batch in BATCHES[:1] if quick else BATCHES:
            size = sized(tokens, batch)
            for share in (VALUE_SHARE, KEY_SHARE):
                yield f"threshold decode, {size}", partial(decode, setup, batch, tokens, share)
            for method in (TopTheta(keep=KEY_SHARE), TopK(k=K)):
                yield f"{method.name} decode, {size}", partial(decode_by_all_scores, setup, batch, tokens, method)
            yield f"threshold prefill, {size}", partial(threshold_prefill, setup, batch, tokens)
            yield f"top-k prefill, {size}", partial(top_k_prefill, setup, batch, tokens)
            yield f"clustered, {size}", partial(clustered, setup, batch, tokens)
    d_model, d_ff = FEED_FORWARD
    for tokens in (1, 16):
        yield f"feed-forward {d_model}/{d_ff}, {length(tokens)}", partial(layer, setup, tokens, d_model, d_ff)


def sized(tokens: int, batch: int) -> str:
    return f"{length(tokens)}, batch {batch}"


def decode(setup: Setup, batch: int, keys: int, share: float) -> GpuCase:
    """One query against a KV cache, compared with scores: all keys are read, and the values that a group keeps."""
    method = TopTheta(keep=share, placement="pre-softmax")
    return _step(setup, batch, keys, method, share, 1.5 if share == VALUE_SHARE and keys >= LONG else None)


def decode_by_all_scores(setup: Setup, batch: int, keys: int, method: TopK | TopTheta) -> GpuCase:
    """One query by a method that has to see all scores first. FlexAttention compares with scores here, too."""
    return _step(setup, batch, keys, method, KEY_SHARE if isinstance(method, TopTheta) else K / keys, None)


def _step(setup: Setup, batch: int, keys: int, method: TopK | TopTheta, share: float, floor: float | None) -> GpuCase:
    inputs, by_score = setup.attention(batch, 1, keys), TopTheta(keep=share, placement="pre-softmax")
    on_scores = _table(inputs, by_score, share)
    table = None
    if isinstance(method, TopTheta):
        table = on_scores if method == by_score else _table(inputs, method, share)
    checked, values = _checked(inputs, method, table)
    rows = batch * setup.groups * keys
    row_bytes = setup.width * inputs.key.element_size()
    name = f"threshold decode, {method.placement}" if isinstance(method, TopTheta) else "top-k decode"
    return GpuCase(
        f"{name}, {values:.0%} of V rows",
        sized(keys, batch),
        partial(_attend, inputs, method, table),
        _others(inputs, on_scores, causal=False),
        checked,
        rows * row_bytes * (1 + values),
        2 * batch * setup.heads * keys * setup.width * (1 + share),
        floor,
    )


def threshold_prefill(setup: Setup, batch: int, tokens: int) -> GpuCase:
    """A prompt, compared with scores."""
    inputs = setup.attention(batch, tokens, tokens, causal=True)
    method = TopTheta(keep=KEY_SHARE, placement="pre-softmax")
    return _prefill("threshold prefill", inputs, method, _table(inputs, method, KEY_SHARE), KEY_SHARE)


def top_k_prefill(setup: Setup, batch: int, tokens: int) -> GpuCase:
    """A prompt with the k highest scores of each row. FlexAttention gets a threshold that keeps as many of the last."""
    return _prefill("top-k prefill", setup.attention(batch, tokens, tokens, causal=True), TopK(k=K), None, K / tokens)


def _prefill(
    name: str, inputs: AttentionInputs, method: TopK | TopTheta, table: ModuleThresholds | None, share: float
) -> GpuCase:
    batch, heads, tokens, width = inputs.query.shape
    others = _others(inputs, table or _table(inputs, TopTheta(keep=share, placement="pre-softmax"), share), causal=True)
    described = f"{name}, {method.describe()}"
    run, (checked, _) = partial(_attend, inputs, method, table), _checked(inputs, method, table)
    products = batch * heads * tokens * tokens * width * (1 + share)  # half of 2 n^2 d, for causal rows
    return GpuCase(described, sized(tokens, batch), run, others, checked, _once(inputs), products)


def clustered(setup: Setup, batch: int, tokens: int) -> GpuCase:
    """Whole sequences without a mask. Not checked here: the definition depends on the clusters that were found."""
    inputs, method = setup.attention(batch, tokens, tokens), setup.clusters
    others: dict[str, Callable[[], object]] = {
        SDPA: partial(flash, inputs, causal=False),
        EAGER: partial(eager, inputs, causal=False),
    }
    scores = method.clusters * tokens + tokens * method.k
    return GpuCase(
        f"clustered, {method.describe()}",
        sized(tokens, batch),
        partial(_attend, inputs, method, None),
        others,
        None,
        _once(inputs),
        4 * batch * setup.heads * scores * setup.width,
        3.0 if tokens >= LONG else None,
    )


def layer(setup: Setup, tokens: int, d_model: int, d_ff: int) -> GpuCase:
    """A ReLU feed-forward layer, as a patched model computes it."""
    random = torch.Generator(setup.device).manual_seed(0)
    hidden = setup.random(random, tokens, d_model)
    up = setup.random(random, d_ff, d_model) * d_model**-0.5
    down = setup.random(random, d_model, d_ff) * d_ff**-0.5
    k, kernel = d_ff // 16, feed_forward_kernel_of(setup.device.type)
    method = TopKFeedForward(k=k)

    def ours() -> Tensor:
        inner = relu(linear(hidden, up))
        refused = kernel.refusal(inner, down.t(), method) is not None
        out: Tensor | None = kernel.project_kept(inner, down, None, False, method, refused)
        return linear(method.mask(inner), down) if out is None else out

    inner = relu(linear(hidden, up))
    way = kernel.NAME if kernel.refusal(inner, down.t(), method) is None else "torch: the dense product"
    expected = method.mask(inner.double()) @ down.double().t()
    read = min(tokens * k, d_ff)
    return GpuCase(
        f"top-k feed-forward {d_model}/{d_ff}, k = {k} ({way})",
        length(tokens),
        ours,
        {DENSE: lambda: linear(relu(linear(hidden, up)), down)},
        Checked(ours(), expected, k / d_ff),
        (d_ff + read) * d_model * up.element_size(),
        2 * tokens * d_model * (d_ff + k),
        1.4 if tokens == 1 else None,
    )


def _others(inputs: AttentionInputs, table: ModuleThresholds, *, causal: bool) -> dict[str, Callable[[], object]]:
    theta = table.theta[:, -1].to(inputs.query.device)
    return {
        SDPA: partial(flash, inputs, causal=causal),
        FLEX: flex(inputs, theta, causal=causal),
        EAGER: partial(eager, inputs, causal=causal),
    }


def _attend(
    inputs: AttentionInputs, method: TopK | TopTheta | Clustered, table: ModuleThresholds | None, count: bool = False
) -> tuple[Tensor, RowCounts | None]:
    kernel = kernel_of(method, inputs.query.device.type)
    reason = "no kernel" if kernel is None else kernel.refusal(inputs, method)
    if kernel is None or reason is not None:
        raise SparsifyError(f"{method.describe()} runs in torch ({reason}): there is nothing to measure")
    result: tuple[Tensor, RowCounts | None] = kernel.attend(inputs, method, table, count=count)
    return result


def _first(inputs: AttentionInputs) -> AttentionInputs:
    """The first of the sequences."""
    return replace(inputs, query=inputs.query[:1], key=inputs.key[:1], value=inputs.value[:1])


def _table(inputs: AttentionInputs, method: TopTheta, share: float) -> ModuleThresholds:
    one = _first(inputs)
    return thresholds(replace(one, query=one.query.float(), key=one.key.float()), method, share)


def _checked(inputs: AttentionInputs, method: TopK | TopTheta, table: ModuleThresholds | None) -> tuple[Checked, float]:
    """Some rows of the first sequence, and the share of its V rows that a decoding step reads."""
    one = _first(inputs)
    out, counts = _attend(one, method, table, count=True)
    queries = one.query.shape[2]
    picked = torch.linspace(0, queries - 1, min(CHECKED_ROWS, queries), device=out.device).long()
    expected, _ = method.attend(exact(queries_at(one, picked)), thresholds=table)
    v_rows = None if counts is None else counts.v_rows
    read = 1.0 if v_rows is None else float(v_rows.sum()) / (one.key.shape[1] * one.key.shape[2])
    return Checked(flat_rows(out[:, :, picked]), flat_rows(expected), kept_share(counts, one)), read


def _once(inputs: AttentionInputs) -> int:
    """Bytes of queries, keys, values and output, each moved once."""
    return (2 * inputs.query.numel() + 2 * inputs.key.numel()) * inputs.query.element_size()
