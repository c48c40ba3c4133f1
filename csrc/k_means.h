// Clusters of queries: k-means in the metric of the keys' covariance.
//
// The definition is hf_sparsify/patcher/methods (k_means.py, and score_space in clustered.py). There points are queries
// times a factor L of the covariance; here they stay queries, and distances are (q - c) L L' (q - c)'. The nearest
// centroid is the one of the highest q . w - c . w / 2 with w = L L' c, so that no other form of a query is needed.
#pragma once

#include <cmath>
#include <vector>

#include "candidates.h"
#include "parallel.h"
#include "product.h"

// One call, as it crosses from Python. Every sequence is clustered by itself, without its padding.
struct Clustering {
  int64_t batches, heads, groups;
  int64_t width, value_width;
  bool bf16;
  Strided query, key, value, out;
  float scale, softcap;      // softcap 0: none
  const int32_t* positions;  // of the valid tokens of the first sequence, then of the second...
  const int64_t* starts;     // [batches + 1], of each sequence's positions
  int64_t clusters;          // at most; never more than a sequence has tokens
  int64_t refined;           // keys per cluster, at most all; 0: none
  int64_t iterations, training;  // updates, and points that they look at
  const float* direction;        // [width], along which the first centroids spread
  int32_t* assigned;             // of each sequence [heads, its length]
  int threads;

  int64_t length(int64_t batch) const { return starts[batch + 1] - starts[batch]; }
  int64_t longest() const {
    int64_t most = 0;
    for (int64_t b = 0; b < batches; ++b) most = std::max(most, length(b));
    return most;
  }
  int64_t clusters_of(int64_t batch) const { return std::min(clusters, length(batch)); }
  int32_t* assigned_of(int64_t batch, int64_t head) const {
    return assigned + starts[batch] * heads + head * length(batch);
  }
  template <typename T>
  Picked<T> tokens(const Strided& s, int64_t batch, int64_t head) const {
    return {row_of<T>(s, batch, head, 0), s.row, positions + starts[batch]};
  }
};

// Numbers 0..count in the order of their clusters: members of cluster c are order[starts[c]..starts[c + 1]).
inline void group_by(const int32_t* assigned, int64_t count, int64_t clusters, int64_t* starts, int32_t* order) {
  std::fill_n(starts, clusters + 1, 0);
  for (int64_t i = 0; i < count; ++i) ++starts[assigned[i]];
  int64_t end = 0;
  for (int64_t c = 0; c <= clusters; ++c) starts[c] = end += starts[c];
  for (int64_t i = count; i-- > 0;) order[--starts[assigned[i]]] = static_cast<int32_t>(i);
}

// The order of floats, stable.
inline std::vector<int32_t> sorted(const std::vector<float>& values) {
  constexpr int kBits = 11, kBins = 1 << kBits;
  const int32_t count = static_cast<int32_t>(values.size());
  std::vector<int32_t> order(count), next(count);
  std::vector<uint32_t> keys(count);
  for (int32_t i = 0; i < count; ++i) order[i] = i, keys[i] = ordered(values[i] + 0.0f);  // -0 is 0
  std::vector<int32_t> places(kBins);
  for (int shift = 0; shift < 32; shift += kBits) {
    std::fill(places.begin(), places.end(), 0);
    for (uint32_t key : keys) ++places[key >> shift & (kBins - 1)];
    int32_t start = 0;
    for (int32_t& place : places) start += place, place = start - place;
    for (int32_t i : order) next[places[keys[i] >> shift & (kBins - 1)]++] = i;
    order.swap(next);
  }
  return order;
}

// L L' of every KV head, scaled, and L times the direction.
template <typename T>
void find_metric(const Clustering& a, int64_t batch, int64_t group, float* metric, float* slope) {
  constexpr int64_t kTile = 96;
  const Picked<T> keys = a.tokens<T>(a.key, batch, group);
  const int64_t count = a.length(batch), width = a.width, whole = whole_vectors(width);
  std::vector<float> mean(whole), tile(kTile * whole);
  sum_rows(keys, count, width, mean.data());
  for (float& x : mean) x /= static_cast<float>(count);
  std::fill_n(metric, width * whole, 0.0f);
  for (int64_t at = 0; at < count; at += kTile) {
    const int64_t depth = std::min(kTile, count - at);
    pack_rows(keys.from(at), depth, width, mean.data(), tile.data());
    for (int64_t e = 0; e < whole; e += kBlockRows) {
      const int64_t columns = std::min<int64_t>(kBlockRows, whole - e), rows = std::min(width, e + columns);
      for (int64_t i = 0; i < rows; i += kRowsAtOnce)  // the other half mirrors this one
        multiply_rows(static_cast<int>(std::min<int64_t>(kRowsAtOnce, rows - i)), LeftColumns{tile.data() + i, whole},
                      tile.data() + e, whole, depth, columns, [&](int r, int64_t column, simd::Vec sum) {
                        float* to = metric + (i + r) * whole + e + column;
                        simd::store(to, simd::add(simd::load(to), sum));
                      });
    }
  }
  double trace = 0;
  const float per_key = a.scale * a.scale / static_cast<float>(count);
  for (int64_t i = 0; i < width; ++i) {
    for (int64_t j = i; j < width; ++j) metric[j * whole + i] = metric[i * whole + j] *= per_key;
    trace += metric[i * whole + i];
  }
  for (int64_t i = 0; i < width; ++i) metric[i * whole + i] += static_cast<float>(1e-6 * trace) + 1e-12f * a.scale * a.scale;
  // Cholesky, column by column of L, which are rows here; each is used and forgotten.
  std::vector<double> rest(width * width);
  for (int64_t i = 0; i < width; ++i) std::copy_n(metric + i * whole, width, rest.data() + i * width);
  std::fill_n(slope, whole, 0.0f);
  for (int64_t k = 0; k < width; ++k) {
    double* column = rest.data() + k * width;
    if (!(column[k] > 0)) continue;
    const double pivot = 1 / std::sqrt(column[k]);
    for (int64_t i = k; i < width; ++i) column[i] *= pivot, slope[i] += static_cast<float>(column[i] * a.direction[k]);
    for (int64_t i = k + 1; i < width; ++i)
      for (int64_t j = i; j < width; ++j) rest[i * width + j] -= column[i] * column[j];
  }
}

// Centroids of one head, relative to its mean query: what the nearest is chosen by.
struct Centroids {
  float* mean;     // [whole vectors of width]
  float* weights;  // w, [clusters, whole vectors of width]
  float* halves;   // c . w / 2, [clusters]
  int64_t count, width, whole;

  // The nearest of at most kBlockRows packed points, the first among equals.
  void nearest(const float* packed, int points, int32_t* to) const {
    simd::Vec best[kBlockVectors], index[kBlockVectors];
    for (int v = 0; v < kBlockVectors; ++v) best[v] = simd::set(-simd::kInfinity), index[v] = simd::zero();
    const float* some[kRowsAtOnce];
    for (int64_t c = 0; c < count; c += kRowsAtOnce) {
      const int rows = static_cast<int>(std::min<int64_t>(kRowsAtOnce, count - c));
      for (int r = 0; r < rows; ++r) some[r] = weights + (c + r) * whole;
      auto compare = [&](int i, int v, simd::Vec sum) {
        const simd::Vec closeness = simd::sub(sum, simd::set(halves[c + i]));
        const simd::Bits closer = simd::above(closeness, best[v]);
        best[v] = simd::choose(closer, closeness, best[v]);
        index[v] = simd::choose(closer, simd::set(static_cast<float>(c + i)), index[v]);
      };
      multiply_some<kRowsAtOnce, kBlockVectors>(rows, LeftRows{some}, packed, kBlockRows, width, compare);
    }
    float found[kBlockRows];
    for (int v = 0; v < kBlockVectors; ++v) simd::store(found + v * simd::kLanes, index[v]);
    for (int r = 0; r < points; ++r) to[r] = static_cast<int32_t>(found[r]);
  }

  // From the centroids themselves.
  void weigh(const float* centroids, const float* metric) const {
    multiply(centroids, whole, count, metric, whole, width, whole,
             [&](int64_t c, int64_t e, simd::Vec sum) { simd::store(weights + c * whole + e, sum); });
    for (int64_t c = 0; c < count; ++c) {
      float product = 0;
      for (int64_t d = 0; d < width; ++d) product += centroids[c * whole + d] * weights[c * whole + d];
      halves[c] = 0.5f * product;
    }
  }
};

// Of points in the order of their projections, those that the first centroids are: distinct as long as there are any.
inline std::vector<int32_t> spread_out(const std::vector<float>& projected, const std::vector<int32_t>& order,
                                       int64_t count) {
  std::vector<int32_t> distinct, chosen(count);
  for (size_t i = 0; i < order.size(); ++i)
    if (i == 0 || projected[order[i]] != projected[order[i - 1]]) distinct.push_back(order[i]);
  const int64_t total = static_cast<int64_t>(distinct.size());
  for (int64_t s = 0; s < count; ++s)
    chosen[s] = distinct[total > count ? (2 * s + 1) * total / (2 * count) : std::min(s, total - 1)];
  return chosen;
}

template <typename T>
void train(const Clustering& a, int64_t batch, int64_t head, const float* metric, const float* slope,
           const Centroids& to) {
  const Picked<T> queries = a.tokens<T>(a.query, batch, head);
  const int64_t count = a.length(batch), width = to.width, whole = to.whole;
  std::fill_n(to.mean, whole, 0.0f);
  sum_rows(queries, count, width, to.mean);
  for (int64_t d = 0; d < width; ++d) to.mean[d] /= static_cast<float>(count);

  std::vector<float> projected(count);
  for (int64_t i = 0; i < count; ++i) {
    const T* query = queries.row(i);
    simd::Vec sum = simd::zero();
    for (int64_t d = 0; d < width; d += simd::kLanes) {
      const int rest = static_cast<int>(std::min<int64_t>(simd::kLanes, width - d));
      const simd::Vec x = rest == simd::kLanes ? Stored<T>::load(query + d) : Stored<T>::load_first(query + d, rest);
      sum = simd::fma(simd::sub(x, simd::load(to.mean + d)), simd::load(slope + d), sum);
    }
    projected[i] = simd::sum(sum);
  }
  const std::vector<int32_t> order = sorted(projected);
  const auto places = [&](std::vector<int32_t> numbers) {
    for (int32_t& i : numbers) i = queries.places[i];
    return numbers;
  };
  std::vector<float> centroids(to.count * whole);
  const std::vector<int32_t> first = places(spread_out(projected, order, to.count));
  pack_rows(Picked<T>{queries.base, queries.stride, first.data()}, to.count, width, to.mean, centroids.data());
  to.weigh(centroids.data(), metric);
  if (!a.iterations) return;

  // Updates look at points evenly spread along the order.
  const int64_t used = std::min(a.training, count), blocks = (used + kBlockRows - 1) / kBlockRows;
  std::vector<int32_t> sample(used), assigned(blocks * kBlockRows), members(used);
  for (int64_t s = 0; s < used; ++s) sample[s] = order[used < count ? (2 * s + 1) * count / (2 * used) : s];
  sample = places(std::move(sample));
  std::vector<float> points(used * whole), packed(blocks * kBlockRows * width);
  pack_rows(Picked<T>{queries.base, queries.stride, sample.data()}, used, width, to.mean, points.data());
  std::vector<int32_t> all(used);
  for (int64_t s = 0; s < used; ++s) all[s] = static_cast<int32_t>(s);
  const Picked<float> rows{points.data(), whole, all.data()};
  for (int64_t b = 0; b < blocks; ++b)
    pack_lanes(rows.from(b * kBlockRows), static_cast<int>(std::min<int64_t>(kBlockRows, used - b * kBlockRows)), width,
               nullptr, 1.0f, packed.data() + b * kBlockRows * width);
  std::vector<int64_t> starts(to.count + 1);
  for (int64_t iteration = 0; iteration < a.iterations; ++iteration) {
    for (int64_t b = 0; b < blocks; ++b)
      to.nearest(packed.data() + b * kBlockRows * width, kBlockRows, assigned.data() + b * kBlockRows);
    group_by(assigned.data(), used, to.count, starts.data(), members.data());
    for (int64_t c = 0; c < to.count; ++c) {
      const int64_t size = starts[c + 1] - starts[c];
      if (!size) continue;
      float* centroid = centroids.data() + c * whole;
      sum_rows(Picked<float>{points.data(), whole, members.data() + starts[c]}, size, width, centroid);
      for (int64_t d = 0; d < width; ++d) centroid[d] /= static_cast<float>(size);
    }
    to.weigh(centroids.data(), metric);
  }
}

template <typename T>
void assign_clusters(const Clustering& a) {
  constexpr int64_t kPart = 64 * kBlockRows;
  // With as many clusters as tokens there is nothing to find.
  const auto trivial = [&](int64_t batch) { return a.clusters_of(batch) == a.length(batch); };
  int64_t most = 0;
  for (int64_t b = 0; b < a.batches; ++b)
    if (!trivial(b)) most = std::max(most, a.clusters_of(b));
  const int64_t whole = whole_vectors(a.width), parts = (a.longest() + kPart - 1) / kPart;
  const int64_t kv_heads = a.batches * a.groups, heads = a.batches * a.heads, per_group = a.heads / a.groups;
  std::vector<float> metrics(most ? kv_heads * a.width * whole : 0), slopes(kv_heads * whole);
  std::vector<float> means(heads * whole), weights(heads * most * whole), halves(heads * most);
  const auto centroids = [&](int64_t i) {
    return Centroids{means.data() + i * whole, weights.data() + i * most * whole, halves.data() + i * most,
                     a.clusters_of(i / a.heads), a.width, whole};
  };
  const auto metric = [&](int64_t i) { return metrics.data() + i * a.width * whole; };
  for_each_item(kv_heads, a.threads, [&](int64_t i) {
    if (!trivial(i / a.groups)) find_metric<T>(a, i / a.groups, i % a.groups, metric(i), slopes.data() + i * whole);
  });
  for_each_item(heads, a.threads, [&](int64_t i) {
    const int64_t group = i / per_group;  // of all sequences, as i is a head of all
    if (!trivial(i / a.heads))
      train<T>(a, i / a.heads, i % a.heads, metric(group), slopes.data() + group * whole, centroids(i));
  });
  for_each_item(heads * parts, a.threads, [&](int64_t i) {
    const int64_t batch = i / parts / a.heads, head = i / parts % a.heads;
    const int64_t begin = i % parts * kPart, end = std::min(begin + kPart, a.length(batch));
    int32_t* assigned = a.assigned_of(batch, head);
    if (trivial(batch)) {
      for (int64_t at = begin; at < end; ++at) assigned[at] = static_cast<int32_t>(at);
      return;
    }
    const Centroids of_head = centroids(i / parts);
    std::vector<float> packed(a.width * kBlockRows);
    for (int64_t at = begin; at < end; at += kBlockRows) {
      const int count = static_cast<int>(std::min<int64_t>(kBlockRows, end - at));
      pack_lanes(a.tokens<T>(a.query, batch, head).from(at), count, a.width, of_head.mean, 1.0f, packed.data());
      of_head.nearest(packed.data(), count, assigned + at);
    }
  });
}
