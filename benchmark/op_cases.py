"""The operations that `benchmark/ops.py` measures: random inputs, the dense way, ours, and what no way can avoid."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import linear, relu

from ..patcher.kernels import clusters, feed_forward, rows
from ..patcher.methods import AttentionInputs, Clustered, TopK, TopKFeedForward, TopTheta
from ..patcher.methods.chunk import RowCounts
from ..patcher.methods.cluster_rows import attend_clusters
from ..patcher.methods.rounded_keys import RoundedKeys, rounded_bytes
from ..patcher.thresholds import ModuleThresholds
from .op_inputs import SHARE, WIDTH, attention, dense, exact, queries_at, score_product, thresholds

K = 64
PLACEMENTS = ("pre-softmax", "max-relative", "post-softmax")
CHECKED_ROWS = 64
# What takes turns, so that none of it stays in the cache: so many bytes of KV caches, so many feed-forward layers.
CACHE_BYTES = 2**27
LAYERS = 6


@dataclass(frozen=True)
class Checked:
    """Output rows as they are and by the definition in float64, both [n, E].

    kept: share of the visible keys, or of activations. least: the share of the case's `least` that cannot be avoided.
    """

    got: Tensor
    expected: Tensor
    kept: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class Arm:
    """One way of ours. floor: how many times faster than the dense way it is to be."""

    name: str
    run: Callable[[], object]
    check: Callable[[], Checked]
    floor: float | None = None


@dataclass(frozen=True)
class Case:
    """Ways to do the same work. least: the part of it, or a share of that, that every exact way has to do."""

    size: str
    dense: Callable[[], object]
    least: Callable[[], object]
    arms: list[Arm]


def cases(quick: bool) -> Iterator[Case]:
    """One after the other, so that only one's inputs are in memory. quick: small ones, without floors."""
    if quick:
        yield bidirectional(512, None, None)
        yield causal(512, None)
        yield decode(1024, 9, 3, None, in_turn=True)
        yield decode(1024, 4, 4, None, in_turn=False)
        yield prefill(512, None)
        yield feed_forward_layer(4, None)
        return
    for tokens, floor, clustered_floor in ((1024, 1.2, 2.0), (4096, 1.6, 9.0), (16384, 1.8, 30.0)):
        yield bidirectional(tokens, floor, clustered_floor)
        yield causal(tokens, floor)
    for keys, floor in ((1024, 2.2), (4096, 2.7), (16384, 3.5)):
        yield decode(keys, 9, 3, floor, in_turn=False)
        yield decode(keys, 9, 3, floor, in_turn=True)
    yield decode(4096, 12, 12, 1.6, in_turn=False)
    yield decode(4096, 12, 12, 1.6, in_turn=True)
    yield decode(16384, 12, 12, 1.8, in_turn=True)
    for tokens, floor in ((1024, 1.8), (4096, 1.5), (8192, 1.3)):
        yield prefill(tokens, floor)
    for tokens, floor in ((1, 1.7), (16, 1.5), (512, 1.3)):
        yield feed_forward_layer(tokens, floor)


def bidirectional(tokens: int, floor: float | None, clustered_floor: float | None) -> Case:
    """Top-k and clustered attention of a whole sequence, 8 heads."""
    inputs = attention(tokens, tokens, 8, 8)
    arms = [
        row_arm("top-k, bidirectional", inputs, TopK(k=K), floor=floor),
        row_arm("top-k sdc+vmc, bidirectional", inputs, TopK(k=K, compensation="sdc+vmc")),
        clustered_arm(inputs, clustered_floor),
    ]
    return Case(length(tokens), lambda: dense(inputs), score_product(inputs), arms)


def causal(tokens: int, floor: float | None) -> Case:
    """Top-k attention of a prompt, 8 heads."""
    inputs = attention(tokens, tokens, 8, 8, causal=True)
    arms = [
        row_arm("top-k, causal", inputs, TopK(k=K), floor=floor, least=0.5),
        row_arm("top-k sdc+vmc, causal", inputs, TopK(k=K, compensation="sdc+vmc"), least=0.5),
    ]
    return Case(length(tokens), lambda: dense(inputs, causal=True), score_product(inputs), arms)


def prefill(tokens: int, floor: float | None) -> Case:
    """Top-theta attention of a prompt, 8 heads, with each placement of the threshold."""
    inputs = attention(tokens, tokens, 8, 8, causal=True)
    methods = [TopTheta(keep=SHARE, placement=placement) for placement in PLACEMENTS]
    arms = [
        row_arm(f"top-theta prefill, {m.placement}", inputs, m, thresholds(inputs, m), floor=floor, least=0.5)
        for m in methods
    ]
    return Case(length(tokens), lambda: dense(inputs, causal=True), score_product(inputs), arms)


def decode(keys: int, heads: int, groups: int, floor: float | None, *, in_turn: bool) -> Case:
    """One query against one KV cache, or against several in turn, as a model's layers have them."""
    caches = max(1, CACHE_BYTES // (2 * groups * keys * WIDTH * 4)) if in_turn else 1
    calls = [attention(1, keys, heads, groups, seed=seed) for seed in range(caches)]
    summed = [replace(inputs, value_sum=inputs.value.double().sum(2)) for inputs in calls]
    name = f"{'GQA' if groups < heads else 'MHA'} {heads}/{groups}"
    whole = step_arm(f"same kernel, all kept, {name}", calls, TopTheta(keep=1.0))
    tenth = TopTheta(keep=SHARE, placement="pre-softmax")
    few = TopTheta(k=K, placement="pre-softmax")
    compensated = TopTheta(k=K, compensation="sdc+vmc")
    arms = [
        step_arm(f"top-theta decode, {name}", calls, TopTheta(keep=SHARE), floor),
        whole,
        step_arm(f"top-theta decode, pre-softmax with rounded keys, {name}", with_rounded(calls, tenth), tenth, floor),
        step_arm(f"pre-softmax decode, k = {K}, {name}", calls, few),
        step_arm(f"pre-softmax decode, k = {K}, 8-bit first, {name}", with_rounded(calls, few), few),
        step_arm(f"post-softmax sdc+vmc decode, k = {K}, {name}", summed, compensated),
    ]
    rounded = replace(compensated, denominator="rounded")
    of_rounded = with_rounded(summed, rounded)
    arms.append(step_arm(f"post-softmax sdc+vmc decode, k = {K}, rounded denominator, {name}", of_rounded, rounded))

    def sdpa() -> None:
        for inputs in calls:
            dense(inputs)

    return Case(f"{length(keys, 'key')}, {caches} cache{'s in turn' if caches > 1 else ''}", sdpa, whole.run, arms)


def step_arm(name: str, calls: list[AttentionInputs], method: TopTheta, floor: float | None = None) -> Arm:
    """A decoding step with each of several caches."""
    tables = [step_table(inputs, method) for inputs in calls]

    def run() -> None:
        for inputs, table in zip(calls, tables, strict=True):
            rows.attend(inputs, method, table)

    return Arm(name, run, lambda: checked_step(calls[0], method, tables[0]), floor)


def step_table(inputs: AttentionInputs, method: TopTheta) -> ModuleThresholds | None:
    """Thresholds that keep what the method is to keep on average; None where that is all."""
    share = method.keep if method.keep is not None else (method.k or 0) / inputs.key.shape[2]
    return thresholds(inputs, method, share) if share < 1 else None


def with_rounded(calls: list[AttentionInputs], method: TopTheta) -> list[AttentionInputs]:
    """The same calls with their keys rounded, as decoding carries them from step to step."""
    made = [replace(inputs, rounded=RoundedKeys.room_for(inputs.key, inputs.key.shape[2])) for inputs in calls]
    for inputs in made:
        rows.attend(inputs, method, step_table(inputs, method))
    return made


def feed_forward_layer(tokens: int, floor: float | None, d_model: int = 768, d_ff: int = 3072, k: int = 192) -> Case:
    """ReLU feed-forward layers that take turns, each as a patched model computes it; the least is the up-projection."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, d_model, generator=generator)
    up = [torch.randn(d_ff, d_model, generator=generator) * d_model**-0.5 for _ in range(LAYERS)]
    down = [torch.randn(d_model, d_ff, generator=generator) * d_ff**-0.5 for _ in range(LAYERS)]
    kept_rows = [weight.t().contiguous() for weight in down]

    def layers(last: Callable[[Tensor, int], Tensor]) -> None:
        for index in range(LAYERS):
            last(relu(linear(hidden, up[index])), index)

    def check() -> Checked:
        inner = relu(linear(hidden, up[0]))
        expected = TopKFeedForward(k=k).mask(inner.double()) @ kept_rows[0].double()
        return Checked(feed_forward.project(inner, kept_rows[0], None, k), expected, k / d_ff, 1.0)

    ours = Arm(
        f"top-k feed-forward {d_model}/{d_ff}, k = {k}",
        lambda: layers(lambda inner, i: feed_forward.project(inner, kept_rows[i], None, k)),
        check,
        floor,
    )
    whole = lambda: layers(lambda inner, i: linear(inner, down[i]))
    return Case(length(tokens), whole, lambda: layers(lambda inner, i: inner), [ours])


def length(count: int, of: str = "token") -> str:
    """16384 -> "16k tokens"."""
    number = f"{count // 1024}k" if count % 1024 == 0 else str(count)
    return f"{number} {of}" + ("s" if count > 1 else "")


def row_arm(
    name: str,
    inputs: AttentionInputs,
    method: TopK | TopTheta,
    table: ModuleThresholds | None = None,
    *,
    floor: float | None = None,
    least: float = 1.0,
) -> Arm:
    """A method that works row by row, on many queries, of which some are checked."""

    def check() -> Checked:
        out, counts = rows.attend(inputs, method, table, count=True)
        queries = inputs.query.shape[2]
        picked = torch.linspace(0, queries - 1, min(CHECKED_ROWS, queries)).long()
        expected, _ = method.attend(exact(queries_at(inputs, picked)), thresholds=table)
        return Checked(flat_rows(out[:, :, picked]), flat_rows(expected), kept_share(counts, inputs), least)

    return Arm(name, lambda: rows.attend(inputs, method, table), check, floor)


def checked_step(inputs: AttentionInputs, method: TopTheta, table: ModuleThresholds | None) -> Checked:
    """One decoding step. What is read at least: all keys, or all of them rounded and few in full, and the values that
    some head of a group keeps."""
    out, counts = rows.attend(inputs, method, table, count=True)
    expected, _ = method.attend(exact(inputs), thresholds=table)
    groups, keys = inputs.key.shape[1:3]
    least = None
    if table is not None and counts is not None and counts.v_rows is not None:
        of_keys = 1.0
        if counts.k_rows is not None:
            row_bytes = inputs.key.element_size() * WIDTH
            of_keys = rounded_bytes(WIDTH) / row_bytes + float(counts.k_rows.sum()) / (groups * keys)
        least = (of_keys + float(counts.v_rows.sum()) / (groups * keys)) / 2
    return Checked(flat_rows(out), flat_rows(expected), kept_share(counts, inputs), least)


def clustered_arm(inputs: AttentionInputs, floor: float | None) -> Arm:
    """Improved clustered attention with k-means. Checked, given the clusters, on one head."""
    method = Clustered(clusters=100, k=32)

    def check() -> Checked:
        out, _ = clusters.attend(inputs, method)
        work = clusters.prepared(inputs, method)
        clusters.find_clusters(work)
        assigned = work.assigned.view(inputs.query.shape[:3])[:, :1].long()
        one = exact(replace(inputs, query=inputs.query[:, :1], key=inputs.key[:, :1], value=inputs.value[:, :1]))
        return Checked(flat_rows(out[:, :1]), flat_rows(attend_clusters(one, assigned, method.clusters, method.k)))

    return Arm(f"clustered, {method.describe()}", lambda: clusters.attend(inputs, method), check, floor)


def flat_rows(out: Tensor) -> Tensor:
    """[B, H, n, E] -> [B H n, E]."""
    return out.reshape(-1, out.shape[-1])


def kept_share(counts: RowCounts | None, inputs: AttentionInputs) -> float | None:
    """Kept keys of those that the rows see."""
    if counts is None:
        return None
    lengths = inputs.visibility.lengths().expand_as(counts.kept)
    return float(counts.kept.sum()) / float(lengths.sum())
