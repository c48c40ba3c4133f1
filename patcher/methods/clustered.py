"""Clustered attention: group the queries, let one centroid per group attend, then refine its strongest keys.

Vyas, Katharopoulos, Fleuret: Fast Transformers with Clustered Attention, 2020 (arXiv 2007.04825). `ClusteredPlain` is
their clustered attention, `Clustered` their improved one. By default two things differ from the paper: queries are
clustered by k-means on floats instead of on locality-sensitive hashes, and distance is measured between score rows (the
queries in the metric of the keys' covariance) instead of between queries, because rows are what a cluster shares.
`clustering="hamming"` is the paper's own, see hamming.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ...errors import NotPatchableError, UsageError
from .budget import require_choice, require_count
from .chunk import AttentionInputs, Observer
from .cluster_rows import attend_clusters, working
from .distance_bias import DistanceBias
from .functional import transforms_active
from .hamming import MOST_BITS, hamming_k_means, hash_codes
from .k_means import k_means, training_points
from .row_gradients import needs_gradients
from .rows import attend_rows
from .visibility import FullMask, RowRanges, Visibility

# How many random directions describe a row of the position bias, where there is one.
BIAS_DIRECTIONS = 32
CLUSTERINGS = ("rows", "hamming")
MOST_ITERATIONS = 1000  # a recipe may be a stranger's, and k-means has long settled by then


class ClusterCounts(NamedTuple):
    """What was computed, summed over sequences and heads.

    scores: query-key scores, centroids' and refined ones. dense_scores: what dense attention computes. distances:
    query-centroid distances of k-means, each of which costs about as much as a score; with "hamming", of their codes.
    """

    scores: int
    dense_scores: int
    distances: int


@dataclass(frozen=True)
class ClusteredPlain:
    """Every query gets its cluster's attention output.

    clusters: groups per head, at most the number of tokens. iterations: k-means updates. min_length: shorter sequences
    stay dense. seed: of the generator that seeds k-means. clustering: k-means by the distance of score "rows", or by
    "hamming", the paper's: by that of codes of `bits` bits (1 to 63), which hash queries, whatever their position bias.
    Raises UsageError for values outside their range, and for other bits where there are no codes.
    Bidirectional self-attention only: later queries would move earlier rows. Gradients take the clusters and the choice
    of keys as constants, and reach queries also through their cluster's mean.
    """

    clusters: int = 100
    iterations: int = 3
    min_length: int = 0
    seed: int = 0
    clustering: str = field(default="rows", kw_only=True)
    bits: int = field(default=MOST_BITS, kw_only=True)

    name: ClassVar[str] = "clustered-plain"
    summary: ClassVar[str] = "one attention row per cluster of queries; bidirectional self-attention only"
    paper: ClassVar[str] = "Vyas et al. 2020, arXiv 2007.04825"
    needs_thresholds: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_count("clusters", self.clusters, at_least=1)
        require_count("iterations", self.iterations, at_most=MOST_ITERATIONS)
        require_count("min_length", self.min_length)
        require_count("seed", self.seed, at_most=2**63 - 1)
        require_choice("clustering", self.clustering, CLUSTERINGS)
        require_count("bits", self.bits, at_least=1, at_most=MOST_BITS)
        if self.bits != MOST_BITS and self.clustering != "hamming":
            raise UsageError("bits are for clustering = hamming, which hashes queries: choose it, or leave bits out")

    @property
    def refined(self) -> int:
        """Keys per cluster that are attended to exactly."""
        return 0

    def as_dense(self) -> ClusteredPlain:
        """A cluster for every query, which is the dense model."""
        return replace(self, clusters=2**31, min_length=0)

    def as_small(self, k: int) -> ClusteredPlain:
        """No more than k clusters, so that they are shared even on short inputs."""
        return replace(self, clusters=min(self.clusters, k), min_length=0)

    def describe(self) -> str:
        """For tables: '100 clusters, dense below 512 tokens'."""
        return f"{self._described_clusters()}{self._dense_below()}"

    def _described_clusters(self) -> str:
        """'100 clusters', '100 hamming clusters' or '100 hamming clusters of 32 bits'."""
        if self.clustering == "rows":
            return f"{self.clusters} clusters"
        return f"{self.clusters} hamming clusters" + (f" of {self.bits} bits" if self.bits != MOST_BITS else "")

    def _dense_below(self) -> str:
        return f", dense below {self.min_length} tokens" if self.min_length else ""

    def attend(
        self,
        inputs: AttentionInputs,
        *,
        thresholds: object = None,
        count: bool = False,
        observer: Observer | None = None,
    ) -> tuple[Tensor, ClusterCounts | None]:
        """Attention of a whole sequence: output [B, H, N, E] in the dtype of value and, if asked, what was computed.

        Every sequence is clustered by itself and without its padding; padding queries give zeros. Raises
        NotPatchableError where queries of one sequence see different keys.
        """
        # Autocast would round scores and distances to half precision, and the covariance till it is none any more.
        with torch.autocast(inputs.query.device.type, enabled=False):
            out, counts = self._attend_sequences(inputs)
        return out, counts if count else None

    def _attend_sequences(self, inputs: AttentionInputs) -> tuple[Tensor, ClusterCounts]:
        """Sequences with or without padding."""
        valid = shared_keys(inputs.visibility, inputs.query.shape[2], inputs.key.shape[2])
        if inputs.sinks is not None:
            raise NotPatchableError("clustered attention knows no attention sinks")
        if bool(valid.all()):
            return self._attend_whole(inputs)
        batch, heads, queries = inputs.query.shape[:3]
        out = inputs.value.new_zeros(batch, heads, queries, inputs.value.shape[-1])
        total = ClusterCounts(0, 0, 0)
        for index in range(batch):
            positions = valid[min(index, len(valid) - 1)].nonzero().squeeze(-1)
            if not len(positions):
                continue
            part, counts = self._attend_whole(sequence_at(inputs, index, positions))
            out[index].index_copy_(1, positions, part[0])
            total = ClusterCounts(*(a + b for a, b in zip(total, counts, strict=True)))
        return out, total

    def _attend_whole(self, inputs: AttentionInputs) -> tuple[Tensor, ClusterCounts]:
        """Sequences without padding."""
        batch, heads, length = inputs.query.shape[:3]
        counts = self.counts_of(batch * heads, length)
        if length < self.min_length:
            whole = replace(inputs, visibility=RowRanges.all_keys(length, length, inputs.query.device))
            return attend_rows(whole)[0], counts
        clusters, refined = min(self.clusters, length), min(self.refined, length)
        assigned = self.group(inputs)
        if transforms_active() or not needs_gradients(inputs):
            return attend_clusters(inputs, assigned, clusters, refined), counts
        # Rows and weights of every cluster are many times the inputs: the backward pass makes them anew.
        out: Tensor = checkpoint(
            attend_clusters,
            inputs,
            assigned,
            clusters,
            refined,
            use_reentrant=False,
            preserve_rng_state=bool(inputs.dropout),
        )
        return out, counts

    def group(self, inputs: AttentionInputs) -> Tensor:
        """The cluster of each query of sequences without padding, int64 [B, H, N]."""
        clusters = min(self.clusters, inputs.query.shape[2])
        generator = torch.Generator().manual_seed(self.seed)
        if self.clustering == "hamming":
            return hamming_k_means(hash_codes(working(inputs.query), self.bits, generator), clusters, self.iterations)
        return k_means(score_space(inputs, generator), clusters, self.iterations, generator)

    def counts_of(self, heads: int, length: int) -> ClusterCounts:
        """What so many heads compute for a sequence without padding."""
        rows, dense = heads * length, heads * length * length
        if length < self.min_length:
            return ClusterCounts(dense, dense, 0)
        clusters, refined = min(self.clusters, length), min(self.refined, length)
        updated_by = length if self.clustering == "hamming" else min(training_points(clusters), length)
        measured = self.iterations * updated_by + length
        return ClusterCounts(
            rows * (clusters + refined), dense, heads * clusters * measured if clusters < length else 0
        )


@dataclass(frozen=True)
class Clustered(ClusteredPlain):
    """Improved clustered attention: the k keys that weigh most for the centroid are attended to by each query itself.

    k: refined keys per cluster. The other fields are those of ClusteredPlain.
    """

    k: int = 32

    name: ClassVar[str] = "clustered"
    summary: ClassVar[str] = "as clustered-plain, and every query's own weights for its cluster's k strongest keys"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("k", self.k, at_least=1)

    @property
    def refined(self) -> int:
        return self.k

    def as_dense(self) -> Clustered:
        """Every key refined, which is the dense model for any clusters."""
        return replace(self, k=2**31, min_length=0)

    def as_small(self, k: int) -> Clustered:
        return replace(self, clusters=min(self.clusters, k), k=min(self.k, k), min_length=0)

    def describe(self) -> str:
        """For tables: '100 clusters, k = 32, dense below 512 tokens'."""
        return f"{self._described_clusters()}, k = {self.k}{self._dense_below()}"


def shared_keys(visibility: Visibility, queries: int, keys: int) -> Tensor:
    """The keys that every query of a sequence sees, bool [B or 1, n].

    NotPatchableError where queries see different keys, or are not the keys' own tokens.
    """
    if queries != keys:
        raise NotPatchableError("clustered attention needs self-attention over a whole sequence, without a cache")
    if isinstance(visibility, RowRanges):
        first, last = visibility.first[:, :1], visibility.last[:, :1]
        same = (visibility.first == first).all() & (visibility.last == last).all()
        position = torch.arange(keys, device=first.device)
        valid = (position >= first) & (position < last)
    else:
        valid, same = _shared_by_mask(visibility)
    if not bool(same):
        raise NotPatchableError(
            "clustered attention needs every query of a sequence to see the same keys: "
            "no causal mask, no window, no packed sequences"
        )
    return valid


def _shared_by_mask(mask: FullMask) -> tuple[Tensor, Tensor]:
    """What any query sees, and whether all tokens that are seen see just that."""
    valid = mask.visible.any(1).any(1)
    same = (mask.visible == valid[:, None, None, :]) | ~valid[:, None, :, None]
    return valid, same.all()


def sequence_at(inputs: AttentionInputs, index: int, positions: Tensor) -> AttentionInputs:
    """The tokens at `positions` of one sequence, all of which see each other."""
    picked = (tensor[index : index + 1, :, positions] for tensor in (inputs.query, inputs.key, inputs.value))
    query, key, value = picked
    visibility = RowRanges.all_keys(len(positions), len(positions), query.device)
    bias = _bias_at(inputs.bias, index, positions)
    return replace(inputs, query=query, key=key, value=value, visibility=visibility, bias=bias)


def _bias_at(bias: Tensor | DistanceBias | None, index: int, positions: Tensor) -> Tensor | DistanceBias | None:
    if bias is None:
        return None
    if isinstance(bias, DistanceBias):
        first, last = int(positions[0]), int(positions[-1])
        bias = bias.between(index, first, last + 1)
        if len(positions) == bias.queries:
            return bias
        bias, positions = bias.whole(), positions - first  # padding with holes
    return bias[min(index, len(bias) - 1)][:, positions][:, :, positions].unsqueeze(0)


@torch.no_grad()
def score_space(inputs: AttentionInputs, generator: torch.Generator) -> Tensor:
    """Points [B, H, N, F] whose squared distances are those of the queries' centred score rows, per key.

    Softmax does not see a shift, so for rows q K^T that is (q - q') Cov(K) (q - q')^T. The rows of a position bias are
    described by random directions, which keep distances in the mean, and add theirs: what content and bias have in
    common is left out.
    """
    query, key = working(inputs.query), working(inputs.key)
    heads, groups, length = query.shape[1], key.shape[1], key.shape[2]
    centred = key - key.mean(2, keepdim=True)
    covariance = centred.transpose(2, 3) @ centred / length
    diagonal = covariance.diagonal(dim1=-2, dim2=-1)
    # Enough for wide heads whose keys vary along one direction.
    diagonal += 1e-6 * diagonal.sum(-1, keepdim=True) + 1e-12
    factor = torch.linalg.cholesky_ex(covariance)[0].repeat_interleave(heads // groups, 1)
    points = query @ factor * inputs.scale
    if inputs.bias is None:
        return points
    directions = torch.randn(length, BIAS_DIRECTIONS, generator=generator, dtype=torch.float32).to(points)
    directions = (directions - directions.mean(0)) / (length * BIAS_DIRECTIONS) ** 0.5
    bias = inputs.bias
    rows = bias.times(directions) if isinstance(bias, DistanceBias) else bias.to(points) @ directions
    return torch.cat([points, rows.expand(len(points), heads, -1, -1)], -1)
