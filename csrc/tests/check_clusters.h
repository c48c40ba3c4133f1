// Random calls of clustered attention: k-means gives clusters that there are, attention is the definition in double.
#pragma once

#include <numeric>

#include "../clusters.h"
#include "guarded.h"

// A call and all that it points to. Padding is NaN, and so is the output until it is written.
template <typename T>
struct ClustersCall {
  Clustering a{};
  Tensor<T> query, key, value, out;
  Line<int32_t> positions, assigned;
  Line<int64_t> starts;
  Line<float> direction;

  ClustersCall(Random& r, const Clustering& sizes, int64_t tokens, const std::vector<std::vector<int32_t>>& valid)
      : a(sizes),
        query(r, a.batches, a.heads, tokens, a.width),
        key(r, a.batches, a.groups, tokens, a.width),
        value(r, a.batches, a.groups, tokens, a.value_width),
        out(r, a.batches, a.heads, tokens, a.value_width),
        positions(count(valid), 0),
        assigned(a.heads * positions.size(), -1),
        starts(a.batches + 1, 0),
        direction(a.width, 0.0f) {
    out.fill([] { return kNaN; });
    int64_t at = 0;
    for (int64_t b = 0; b < a.batches; ++b) {
      for (int32_t i : valid[b]) {
        positions[at++] = i;
        const auto draw = [&](const Tensor<T>& to, int64_t heads, int64_t width) {
          for (int64_t h = 0; h < heads; ++h)
            for (int64_t d = 0; d < width; ++d) to.row(b, h, i)[d] = stored<T>(2 * r.real());
        };
        draw(query, a.heads, a.width), draw(key, a.groups, a.width), draw(value, a.groups, a.value_width);
      }
      starts[b + 1] = at;
    }
    for (int64_t d = 0; d < a.width; ++d) direction[d] = r.real();
    a.query = query.strided(), a.key = key.strided(), a.value = value.strided(), a.out = out.strided();
    a.positions = positions.data(), a.assigned = assigned.data(), a.starts = starts.data();
    a.direction = direction.data();
  }

 private:
  static int64_t count(const std::vector<std::vector<int32_t>>& valid) {
    int64_t all = 0;
    for (const auto& of_sequence : valid) all += of_sequence.size();
    return all;
  }
};

template <typename T>
ClustersCall<T> random_clusters(Random& r) {
  constexpr int64_t kTokens[] = {1, 2, 7, 33, 100, 250, 600};
  constexpr int64_t kClusters[] = {1, 2, 7, 40, 130, 1000};
  constexpr int64_t kRefined[] = {0, 1, 5, 32, 33, 1000};
  Clustering a{};
  a.bf16 = sizeof(T) != sizeof(float);
  const int64_t tokens = r.one_of(kTokens);
  a.batches = r.between(1, 2), a.groups = r.between(1, 2), a.heads = a.groups * r.between(1, 2);
  const int64_t widest = std::min<int64_t>(32, std::max<int64_t>(1, 40000 / (tokens * tokens / 8 + 1)));
  a.width = 8 * r.between(1, widest), a.value_width = 8 * r.between(1, widest);
  a.scale = 1 / std::sqrt(static_cast<float>(a.width)), a.softcap = r.once_in(3) ? 1.5f : 0.0f;
  a.clusters = r.one_of(kClusters), a.refined = r.one_of(kRefined);
  a.iterations = r.between(0, 3), a.training = r.between(1, 2) * 20 * a.clusters;
  a.threads = static_cast<int>(r.between(1, 4));
  std::vector<std::vector<int32_t>> valid(a.batches);
  const int64_t padding = r.once_in(2) ? 4 : 1000000;
  for (auto& of_sequence : valid)
    for (int64_t i = 0; i < tokens; ++i)
      if (!r.once_in(padding)) of_sequence.push_back(static_cast<int32_t>(i));
  return {r, a, tokens, valid};
}

inline void softmax(std::vector<double>& scores) {
  const double top = *std::max_element(scores.begin(), scores.end());
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - top);
  for (double& score : scores) score /= total;
}

// One head of one sequence.
template <typename T>
struct HeadOfClusters {
  const ClustersCall<T>& c;
  int64_t b, h, group, length, refined;
  const int32_t* positions;

  HeadOfClusters(const ClustersCall<T>& c, int64_t b, int64_t h)
      : c(c),
        b(b),
        h(h),
        group(h / (c.a.heads / c.a.groups)),
        length(c.a.length(b)),
        refined(std::min(c.a.refined, length)),
        positions(c.positions.data() + c.starts[b]) {}

  std::vector<double> scores(const std::vector<double>& query, const std::vector<int32_t>& keys) const {
    std::vector<double> found;
    for (int32_t key : keys) {
      const double score = c.a.scale * dot(query.data(), c.key.row(b, group, key), c.a.width);
      found.push_back(c.a.softcap > 0 ? c.a.softcap * std::tanh(score / c.a.softcap) : score);
    }
    return found;
  }

  void add_values(std::vector<double>& out, const std::vector<int32_t>& keys,
                  const std::vector<double>& weights) const {
    for (size_t j = 0; j < keys.size(); ++j) add_times(out, weights[j], c.value.row(b, group, keys[j]));
  }

  bool check() const {
    const int32_t* assigned = c.a.assigned_of(b, h);
    for (int64_t cluster = 0; cluster < c.a.clusters_of(b); ++cluster) {
      std::vector<int32_t> members;
      for (int64_t i = 0; i < length; ++i)
        if (assigned[i] == cluster) members.push_back(positions[i]);
      if (!members.empty() && !check_cluster(members)) return false;
    }
    for (int64_t i = 0; i < length; ++i)
      if (assigned[i] < 0 || assigned[i] >= c.a.clusters_of(b)) return wrong("a cluster that there is not");
    return true;
  }

  bool check_cluster(const std::vector<int32_t>& members) const {
    std::vector<double> mean(c.a.width, 0.0), rest(c.a.value_width, 0.0);
    for (int32_t i : members)
      for (int64_t d = 0; d < c.a.width; ++d) mean[d] += c.query.at(b, h, i, d) / static_cast<double>(members.size());
    std::vector<int32_t> keys(positions, positions + length);
    const std::vector<double> unsorted = scores(mean, keys);
    std::vector<int32_t> order(length);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return unsorted[i] > unsorted[j]; });
    // Which of two that score about the same is refined is open.
    if (refined && refined < length && unsorted[order[refined - 1]] - unsorted[order[refined]] < 1e-4) return true;
    for (int64_t j = 0; j < length; ++j) keys[j] = positions[order[j]];
    std::vector<double> weights = scores(mean, keys);
    softmax(weights);
    const double mass = std::accumulate(weights.begin(), weights.begin() + refined, 0.0);
    std::fill_n(weights.begin(), refined, 0.0);
    add_values(rest, keys, weights);
    keys.resize(refined);
    for (int32_t i : members) {
      std::vector<double> out = rest, query(c.a.width);
      if (refined) {
        for (int64_t d = 0; d < c.a.width; ++d) query[d] = c.query.at(b, h, i, d);
        std::vector<double> own = scores(query, keys);
        softmax(own);
        for (double& weight : own) weight *= mass;
        add_values(out, keys, own);
      }
      if (!same_row<T>(c.out.row(b, h, i), out, "clustered row")) return false;
    }
    return true;
  }
};

// False, and says why, where a call does not give what it should.
template <typename T>
bool check_clusters(Random& r) {
  const ClustersCall<T> c = random_clusters<T>(r);
  assign_clusters<T>(c.a);
  attend_clusters<T>(c.a);
  for (int64_t b = 0; b < c.a.batches; ++b)
    for (int64_t h = 0; h < c.a.heads; ++h)
      if (!HeadOfClusters<T>(c, b, h).check()) return false;
  return true;
}
