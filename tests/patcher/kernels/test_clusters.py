"""Clustered attention by the native library, against its definition in torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from clustered_oracle import dense, oracle
from hf_sparsify.errors import NotPatchableError
from hf_sparsify.patcher.kernels import clusters as kernel
from hf_sparsify.patcher.kernels.library import native
from hf_sparsify.patcher.methods import AttentionInputs, Clustered, ClusteredPlain, FullMask, RowRanges
from hf_sparsify.patcher.methods.cluster_rows import attend_clusters
from hf_sparsify.patcher.methods.clustered import score_space
from hf_sparsify.patcher.methods.k_means import cluster_means, training_points
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytestmark = pytest.mark.skipif(native() is None, reason="the native library is not built, or SPARSIFY_NATIVE is 0")

METHOD_LIST = [ClusteredPlain(clusters=4), Clustered(clusters=4, k=5), Clustered(clusters=4, k=5, iterations=0)]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}


def call_of(
    tokens: int = 20,
    *,
    batch: int = 2,
    heads: int = 4,
    groups: int = 2,
    width: int = 16,
    value_width: int | None = None,
    dtype: torch.dtype = torch.float32,
    softcap: float | None = None,
    seed: int = 0,
) -> AttentionInputs:
    """Random self-attention; rows of a head lie apart, as a model's do."""
    generator = torch.Generator().manual_seed(seed)

    def rows(heads: int, width: int) -> Tensor:
        return torch.randn(batch, tokens, heads, width, generator=generator).to(dtype).transpose(1, 2)

    query, key, value = rows(heads, width), rows(groups, width), rows(groups, value_width or width)
    return AttentionInputs(query, key, value, RowRanges.all_keys(tokens, tokens), scale=width**-0.5, softcap=softcap)


def attend(method: ClusteredPlain, call: AttentionInputs, threads: int | None = 1) -> Tensor:
    assert kernel.refusal(call, method) is None
    return kernel.attend(call, method, threads=threads)[0]


def double(call: AttentionInputs) -> AttentionInputs:
    return replace(call, query=call.query.double(), key=call.key.double(), value=call.value.double())


def near(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=tolerance, atol=tolerance)


def clustered(call: AttentionInputs, method: ClusteredPlain, threads: int = 1) -> Tensor:
    """The library's clusters of sequences without padding, [B, H, N]."""
    work = kernel.prepared(call, method, threads)
    work.assigned.fill_(-1)
    kernel.find_clusters(work)
    return work.assigned.view(call.query.shape[:3]).long()


def given_clusters(call: AttentionInputs, method: ClusteredPlain, assigned: Tensor, threads: int = 1) -> Tensor:
    """The library's attention of sequences without padding, into an output that was NaN."""
    work = kernel.prepared(call, method, threads)
    work.out.fill_(torch.nan)
    work.assigned.copy_(assigned.flatten())
    kernel.attend_clusters(work)
    return work.out


def random_clusters(call: AttentionInputs, clusters: int, seed: int = 0) -> Tensor:
    return torch.randint(0, clusters, call.query.shape[:3], generator=torch.Generator().manual_seed(seed))


# Attention, given the clusters


@pytest.mark.parametrize("threads", [1, 2, 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("extra", [{}, {"heads": 3, "groups": 1}, {"softcap": 1.5}, {"value_width": 40}], ids=str)
@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_output_is_the_formulas(
    method: ClusteredPlain, extra: dict[str, Any], dtype: torch.dtype, threads: int
) -> None:
    call = call_of(37, dtype=dtype, **extra)
    assigned = random_clusters(call, 4)
    out = given_clusters(call, method, assigned, threads)
    assert out.dtype == dtype
    near(out, oracle(call, assigned, method.refined), TOLERANCE[dtype])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_random_shapes(data: st.DataObject) -> None:
    groups, per_group = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    width, value_width = (8 * data.draw(st.integers(1, 32)) for _ in range(2))
    tokens = data.draw(st.integers(1, 1200) if width <= 64 else st.integers(1, 100))
    call = call_of(
        tokens,
        batch=data.draw(st.integers(1, 2)),
        heads=groups * per_group,
        groups=groups,
        width=width,
        value_width=value_width,
        softcap=data.draw(st.sampled_from([None, 1.5])),
        seed=data.draw(st.integers(0, 9)),
    )
    clusters = min(data.draw(st.integers(1, 130)), tokens)
    k = data.draw(st.sampled_from([0, 1, 5, 32, 33, 100, 2000]))
    method = Clustered(clusters=clusters, k=k) if k else ClusteredPlain(clusters=clusters)
    assigned = random_clusters(call, clusters)
    out = given_clusters(call, method, assigned, data.draw(st.integers(1, 4)))
    near(out, attend_clusters(double(call), assigned, clusters, min(k, tokens)))


@pytest.mark.parametrize("k", [1, 32, 600])
def test_scores_far_apart_and_in_any_order(k: int) -> None:
    """Rising scores make every key the strongest so far; one far above the rest leaves no weight to those."""
    call = call_of(1100, batch=1, heads=2, groups=1, width=8)
    assigned = random_clusters(call, 3)
    for scale, order in ((30.0, None), (1.0, False), (1.0, True)):
        query = call.query.abs()
        key = call.key if order is None else call.key.sum(-1, keepdim=True).sort(2, descending=order).values / 8
        spread = replace(call, query=query, key=key.expand(-1, -1, -1, 8).contiguous(), scale=scale)
        expected = attend_clusters(double(spread), assigned, 3, k)
        near(given_clusters(spread, Clustered(clusters=3, k=k), assigned), expected, 1e-5 if scale == 1 else 1e-4)


def test_of_equal_keys_any_may_be_refined() -> None:
    call = call_of(600, width=8)
    call = replace(call, key=call.key[:, :, torch.arange(600) % 3], value=call.value[:, :, torch.arange(600) % 3])
    assigned = random_clusters(call, 4)
    near(given_clusters(call, Clustered(clusters=4, k=7), assigned), oracle(call, assigned, 7))


@pytest.mark.parametrize("layout", ["heads first", "tokens first", "columns first", "every other row"])
def test_strides(layout: str) -> None:
    call = call_of(50)
    assigned, expected = random_clusters(call, 4), None
    parts = []
    for tensor in (call.query, call.key, call.value):
        if layout == "heads first":
            tensor = tensor.contiguous()
        elif layout == "columns first":
            tensor = tensor.transpose(2, 3).contiguous().transpose(2, 3)
        elif layout == "every other row":
            tensor = torch.stack([tensor, torch.full_like(tensor, torch.nan)], 3).flatten(2, 3)[:, :, ::2]
        parts.append(tensor)
    query, key, value = parts
    expected = oracle(call, assigned, 5)
    call = replace(call, query=query, key=key, value=value)
    near(given_clusters(call, Clustered(clusters=4, k=5), assigned), expected)


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_clusters_that_there_are_not_are_refused(bad: int) -> None:
    call = call_of()
    assigned = random_clusters(call, 4)
    assigned[1, 3, 19] = bad
    with pytest.raises(ValueError, match="of 4"):
        given_clusters(call, Clustered(clusters=4, k=5), assigned)


# k-means


def points_of(call: AttentionInputs) -> Tensor:
    return score_space(double(call), torch.Generator())


def means_of(call: AttentionInputs, points: Tensor, assigned: Tensor, clusters: int) -> Tensor:
    """Means of clusters; a cluster without points is nowhere near."""
    return cluster_means(points, assigned, points.new_full((*points.shape[:2], clusters, points.shape[3]), 1e6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("tokens", "clusters", "width"), [(60, 5, 8), (300, 40, 64), (900, 50, 24), (130, 129, 256)])
def test_every_point_is_nearest_to_its_centroid(tokens: int, clusters: int, width: int, dtype: torch.dtype) -> None:
    """After one update the centroids are the means of the clusters before it, of all points where those are few."""
    call = call_of(tokens, width=width, dtype=dtype)
    points = points_of(call)
    assert tokens <= training_points(clusters)
    method = ClusteredPlain(clusters=clusters, iterations=3)
    before, after = clustered(call, replace(method, iterations=2)), clustered(call, method)
    means = means_of(call, points, before, clusters)
    # A cluster that became empty kept a centroid that is not known here.
    distances = torch.cdist(points, means).square()
    own = distances.gather(-1, after.unsqueeze(-1)).squeeze(-1)
    known = own < 1e6
    assert float(known.double().mean()) > 0.95
    assert bool((own <= distances.amin(-1) + 1e-5 * points.square().sum(-1).max())[known].all())


@pytest.mark.parametrize("iterations", [0, 1, 3])
@pytest.mark.parametrize(("tokens", "clusters"), [(50, 7), (400, 6), (33, 32)])
def test_clusters_are_those_of_the_definition(tokens: int, clusters: int, iterations: int) -> None:
    """Also where updates look at a part of the points. Queries stand in groups, hard to mistake."""
    call = call_of(tokens, groups=4)
    centres = torch.randn(2, 4, clusters, 16, generator=torch.Generator().manual_seed(5))
    query = 6 * centres[:, :, torch.arange(tokens) % clusters] + 0.2 * call.query
    call = replace(call, query=query)
    method = ClusteredPlain(clusters=clusters, iterations=iterations)
    near(attend(method, call), method.attend(double(call))[0])


def test_most_clusters_of_random_points_are_those_of_the_definition() -> None:
    """Rounding moves single points, and their clusters' means with them."""
    call = call_of(2500, batch=1, heads=2, groups=1, width=64)
    method = Clustered(clusters=100)
    difference = (attend(method, call) - method.attend(double(call))[0]).abs().amax(-1)
    assert float((difference < 1e-5).double().mean()) > 0.8
    assert float(difference.max()) < 0.5


def test_inertia_is_that_of_the_definition() -> None:
    call = call_of(3000, batch=1, width=32)
    points = points_of(call)
    for clusters in (10, 100):
        method = ClusteredPlain(clusters=clusters)
        assigned = clustered(call, method)
        means = means_of(call, points, assigned, clusters)
        own = means.gather(2, assigned.unsqueeze(-1).expand_as(points))
        total = (points - points.mean(2, keepdim=True)).square().sum()
        found = float((points - own).square().sum() / total)
        assert found < (0.95 if clusters == 10 else 0.8)


@pytest.mark.parametrize("clusters", [7, 9, 39])
@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_as_many_clusters_as_distinct_queries_is_dense(iterations: int, clusters: int) -> None:
    call = call_of(40)
    call = replace(call, query=call.query[:, :, torch.arange(40).remainder(11).clamp(max=6)])
    near(attend(ClusteredPlain(clusters=clusters, iterations=iterations), call), dense(call))
    near(attend(Clustered(clusters=clusters, iterations=iterations, k=3), call), dense(call))


@pytest.mark.parametrize("tokens", [1, 5, 20])
@pytest.mark.parametrize("clusters", [20, 21, 2**40])
def test_as_many_clusters_as_tokens_is_dense(clusters: int, tokens: int) -> None:
    call = call_of(tokens)
    near(attend(ClusteredPlain(clusters=clusters), call), dense(call))
    near(attend(Clustered(clusters=clusters, k=3), call), dense(call))


@pytest.mark.parametrize("k", [20, 10**9, 2**40])
@pytest.mark.parametrize("clusters", [1, 3])
def test_a_k_of_all_keys_is_dense(clusters: int, k: int) -> None:
    call = call_of(softcap=2.0)
    near(attend(Clustered(clusters=clusters, k=k), call), dense(call))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_queries_that_are_all_the_same(method: ClusteredPlain) -> None:
    call = call_of()
    for value in (call.query[:, :, :1], torch.zeros(()), torch.full((), 1e4)):
        same = replace(call, query=value.expand(2, 4, 20, 16))
        near(attend(method, same), dense(same))
    constant = replace(call, key=torch.ones_like(call.key))
    near(attend(method, constant), dense(constant))


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_a_shift_of_every_key_and_of_every_query_changes_no_cluster(method: ClusteredPlain) -> None:
    call = call_of(200)
    shifted = replace(call, query=call.query + 8, key=call.key + 8)
    assert float((clustered(call, method) == clustered(shifted, method)).double().mean()) > 0.98


@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_what_is_not_finite_spoils_what_it_does_in_torch(where: str) -> None:
    for poison in (torch.nan, torch.inf, -torch.inf):
        call = call_of(600, batch=1)
        tensor = getattr(call, where).clone()
        tensor[0, 0, 100, 3] = poison
        spoilt = replace(call, **{where: tensor})
        for method in (*METHOD_LIST, Clustered(clusters=3, k=600)):
            # With every key refined no query has to do with another's NaN.
            expected = dense(spoilt) if method.refined == 600 else method.attend(spoilt)[0]
            finite = torch.isfinite(attend(method, spoilt))
            # An infinite key may score -inf and weigh nothing.
            assert torch.equal(finite.all(-1), torch.isfinite(expected).all(-1))
            # The other KV head sees none of it.
            assert bool(finite[:, 2:].all())


# Padding, threads, short sequences


def padded(call: AttentionInputs, poison: float) -> tuple[AttentionInputs, Tensor]:
    """Four sequences: whole, padded on the right, with holes, all padding; and their valid tokens."""
    valid = torch.ones(4, call.query.shape[2], dtype=torch.bool)
    valid[1, 13:] = False
    valid[2, [0, 3, 4, 9, 12, 17, 19]] = False
    valid[3] = False
    hidden = ~valid[:, None, :, None]
    parts = {name: getattr(call, name).masked_fill(hidden, poison) for name in ("query", "key", "value")}
    visible = valid[:, None, None, :].expand(-1, 1, valid.shape[1], -1)
    return replace(call, **parts, visibility=FullMask(visible)), valid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", [*METHOD_LIST, Clustered(k=2**31), Clustered(clusters=15, k=15)], ids=str)
def test_a_padded_sequence_is_as_it_is_alone(method: ClusteredPlain, dtype: torch.dtype) -> None:
    call, valid = padded(call_of(batch=4, dtype=dtype), torch.nan)
    out, counts = kernel.attend(call, method, count=True)
    assert counts == method.attend(double(call), count=True)[1]
    for index in range(4):
        assert not out[index, :, ~valid[index]].any()
        if not valid[index].any():
            continue
        tensors = {name: getattr(call, name)[index : index + 1, :, valid[index]] for name in ("query", "key", "value")}
        count = int(valid[index].sum())
        alone = replace(call, **tensors, visibility=RowRanges.all_keys(count, count))
        assert torch.equal(out[index, :, valid[index]], attend(method, alone)[0])


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_ranges_say_the_same_as_a_mask(method: ClusteredPlain) -> None:
    call = call_of(20)
    last = torch.tensor([[20], [13]]).expand(-1, 20)
    by_range = replace(call, visibility=RowRanges(torch.zeros_like(last), last))
    visible = (torch.arange(20) < last[:, :1])[:, None, None, :].expand(-1, 1, 20, -1)
    assert torch.equal(attend(method, by_range), attend(method, replace(call, visibility=FullMask(visible))))
    empty = replace(call, visibility=RowRanges(last, last))
    assert not attend(method, empty).any()


@pytest.mark.parametrize("method", METHOD_LIST, ids=str)
def test_short_sequences_stay_dense(method: ClusteredPlain) -> None:
    call, valid = padded(call_of(batch=4), torch.nan)
    method = replace(method, min_length=15)
    out, counts = kernel.attend(call, method, count=True)
    expected, expected_counts = method.attend(double(call), count=True)
    assert counts == expected_counts
    near(out[1:].transpose(1, 2)[valid[1:]], expected[1:].transpose(1, 2)[valid[1:]])
    assert not out.transpose(1, 2)[~valid].any()
    assert kernel.refusal(call_of(), replace(method, min_length=21)) == "fewer than 21 tokens, which stay dense"


@pytest.mark.parametrize("method", [ClusteredPlain(clusters=20), Clustered(clusters=20, k=9)], ids=str)
def test_threads_change_nothing(method: ClusteredPlain) -> None:
    call = call_of(2100, batch=1, heads=3, groups=1)
    one = attend(method, call)
    for threads in (2, 3, 7, 64, None):
        assert torch.equal(attend(method, call, threads), one)
    with pytest.raises(ValueError, match="threads"):
        attend(method, call, 0)


def test_the_global_state_and_the_inputs_stay_as_they_were() -> None:
    call, before = call_of(), torch.get_rng_state()
    copies = [tensor.clone() for tensor in (call.query, call.key, call.value)]
    method = Clustered(clusters=4, k=5)
    first = attend(method, call)
    assert torch.equal(attend(method, call), first)
    assert not torch.equal(attend(replace(method, seed=1), call), first)
    assert torch.equal(torch.get_rng_state(), before)
    for tensor, copy in zip((call.query, call.key, call.value), copies, strict=True):
        assert torch.equal(tensor, copy)


def test_a_large_output_is_no_different() -> None:
    """Outputs from 32 MiB on ask for large pages."""
    call = call_of(4100, batch=1, heads=8, groups=1, width=8, value_width=256)
    assigned = random_clusters(call, 3)
    out = given_clusters(call, ClusteredPlain(clusters=3), assigned)
    assert out.nbytes > kernel.LARGE
    near(out, attend_clusters(double(call), assigned, 3, 0))


# Refusals

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "dropout": ("dropout", {"dropout": 0.1}),
    "bias": ("a position bias", {"bias": torch.zeros(1, 1, 20, 20)}),
    "sinks": ("attention sinks", {"sinks": torch.zeros(4)}),
    "width": ("head size 12", {"query": torch.zeros(2, 4, 20, 12), "key": torch.zeros(2, 2, 20, 12)}),
    "value width": ("head size 264", {"value": torch.zeros(2, 2, 20, 264)}),
    "dtype": ("stored as bfloat16, float32", {"value": torch.zeros(2, 2, 20, 16, dtype=torch.bfloat16)}),
    "cache": ("queries of other tokens than the keys", {"query": torch.zeros(2, 4, 1, 16)}),
    "gradients": ("gradients", {"query": torch.zeros(2, 4, 20, 16, requires_grad=True)}),
}


@pytest.mark.parametrize(("reason", "fields"), REFUSED.values(), ids=REFUSED)
def test_what_goes_the_torch_way(reason: str, fields: dict[str, Any]) -> None:
    call = replace(call_of(), **fields)
    assert kernel.refusal(call, Clustered()) == reason
    with pytest.raises(ValueError, match=reason):
        kernel.attend(call, Clustered())
    assert kernel.refusal(call_of(dtype=torch.float64), Clustered()) == "stored as float64"
    assert kernel.refusal(call_of(), Clustered(), observer=lambda chunk: None) == "calibration looks at the scores"


def test_rows_that_differ_are_refused_as_in_torch() -> None:
    call = replace(call_of(), visibility=RowRanges.causal(20, 20))
    with pytest.raises(NotPatchableError, match="every query of a sequence to see the same keys"):
        kernel.attend(call, Clustered())
