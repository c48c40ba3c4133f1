// Attention by clusters of queries, once they are assigned: the mean query of a cluster attends to all keys, and its
// strongest keys are attended to by each of its queries.
//
// The definition is hf_sparsify/patcher/methods/cluster_rows.py. The centroids of a head meet span after span of keys
// with a running maximum, sum and candidates for the strongest keys, so that memory stays linear in length.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "candidates.h"
#include "k_means.h"

// Clusters first <= c < last of one head.
template <typename T>
class Clusters {
 public:
  Clusters(const Clustering& a, int64_t batch, int64_t head, int64_t first, int64_t last)
      : a_(a),
        batch_(batch),
        head_(head),
        tokens_(a.length(batch)),
        count_(last - first),
        first_(first),
        refined_(std::min(a.refined, tokens_)),
        every_(refined_ == tokens_),
        whole_(whole_vectors(a.width)),
        whole_values_(whole_vectors(a.value_width)),
        room_(std::min(most_candidates(refined_), tokens_) + 2 * kSlack),
        keys_(a.tokens<T>(a.key, batch, head / (a.heads / a.groups))),
        values_(a.tokens<T>(a.value, batch, head / (a.heads / a.groups))),
        queries_(a.tokens<T>(a.query, batch, head)) {}

  void run() {
    group();
    if (!every_) {
      find_centroids();
      stream();
    }
    for (int64_t c = 0; c < count_; ++c) {
      if (starts_[c + 1] == starts_[c]) continue;
      if (every_)
        choose_every_key();
      else
        settle(c);
      refine(c);
    }
  }

 private:
  static constexpr int kSpan = 512;  // keys; with 100 clusters their scores fill a fifth of the second-level cache
  static constexpr int kValues = 128;  // value rows that are packed together

  struct State {
    float top = -simd::kInfinity, total = 0;
    float floor = -simd::kInfinity;  // no score at or below it is among the strongest
    int found = 0;
  };

  // Members of the clusters, as positions; starts_ counts from the first cluster.
  void group() {
    const int64_t clusters = a_.clusters_of(batch_);
    std::vector<int64_t> starts(clusters + 1);
    std::vector<int32_t> order(tokens_);
    group_by(a_.assigned_of(batch_, head_), tokens_, clusters, starts.data(), order.data());
    starts_.assign(starts.begin() + first_, starts.begin() + first_ + count_ + 1);
    members_.resize(starts_.back() - starts_.front());
    for (size_t i = 0; i < members_.size(); ++i) members_[i] = queries_.places[order[starts_.front() + i]];
    for (int64_t c = count_; c >= 0; --c) starts_[c] -= starts_.front();
  }

  // Mean queries, scaled; zeros for a cluster that has none.
  void find_centroids() {
    centroids_.assign(count_ * whole_, 0.0f);
    for (int64_t c = 0; c < count_; ++c) {
      const int64_t size = starts_[c + 1] - starts_[c];
      float* centroid = centroids_.data() + c * whole_;
      sum_rows(Picked<T>{queries_.base, queries_.stride, members_.data() + starts_[c]}, size, a_.width, centroid);
      const float factor = size ? a_.scale / static_cast<float>(size) : 0.0f;
      for (int64_t d = 0; d < a_.width; ++d) centroid[d] *= factor;
    }
  }

  void stream() {
    states_.assign(count_, State{});
    sums_.assign(count_ * whole_values_, 0.0f);
    scores_.reset(new float[count_ * kSpan]);
    if (refined_) {
      strongest_.reset(new float[count_ * room_]);
      places_.reset(new int32_t[count_ * room_]);
    }
    std::vector<float> keys(a_.width * kBlockRows), values(kValues * whole_values_);
    for (int64_t key = 0; key < tokens_; key += kSpan) {
      const int span = static_cast<int>(std::min<int64_t>(kSpan, tokens_ - key));
      for (int at = 0; at < span; at += kBlockRows) {
        pack_lanes(keys_.from(key + at), std::min(kBlockRows, span - at), a_.width, nullptr, 1.0f, keys.data());
        multiply(centroids_.data(), whole_, count_, keys.data(), kBlockRows, a_.width, kBlockRows,
                 [&](int64_t c, int64_t lane, simd::Vec sum) {
                   simd::store(scores_.get() + c * kSpan + at + lane, capped(sum, a_.softcap));
                 });
      }
      for (int i = 0; i < kSpan; ++i) numbers_[i] = static_cast<int32_t>(key + i);
      for (int64_t c = 0; c < count_; ++c) digest(c, span);
      for (int at = 0; at < span; at += kValues) {
        const int depth = std::min(kValues, span - at);
        pack_rows(values_.from(key + at), depth, a_.value_width, nullptr, values.data());
        multiply(scores_.get() + at, kSpan, count_, values.data(), whole_values_, depth, whole_values_,
                 [&](int64_t c, int64_t e, simd::Vec sum) {
                   float* to = sums_.data() + c * whole_values_ + e;
                   simd::store(to, simd::add(simd::load(to), sum));
                 });
      }
    }
  }

  // New scores become candidates, and weights relative to the highest so far.
  void digest(int64_t c, int span) {
    State& state = states_[c];
    float* scores = scores_.get() + c * kSpan;
    for (int i = span; i % simd::kLanes; ++i) scores[i] = -simd::kInfinity;
    if (refined_) collect(c, span);
    simd::Vec highest = simd::set(state.top);
    for (int i = 0; i < span; i += simd::kLanes) highest = simd::higher(simd::load(scores + i), highest);
    const float top = simd::highest(highest);
    if (top > state.top) {
      const float factor = std::exp(state.top - top);
      state.total *= factor;
      float* sums = sums_.data() + c * whole_values_;
      for (int64_t e = 0; e < whole_values_; ++e) sums[e] *= factor;
      state.top = top;
    }
    const simd::Vec origin = simd::set(top);
    simd::Vec total = simd::zero();
    for (int i = 0; i < span; i += simd::kLanes) {
      const simd::Vec weight = simd::exp(simd::sub(simd::load(scores + i), origin));
      simd::store(scores + i, weight);
      total = simd::add(total, weight);
    }
    state.total += simd::sum(total);
  }

  // What may be among the strongest keys. NaN is not; it spoils the sum, and with that the row.
  void collect(int64_t c, int span) {
    State& state = states_[c];
    const float* scores = scores_.get() + c * kSpan;
    float* strongest = strongest_.get() + c * room_;
    int32_t* places = places_.get() + c * room_;
    const int k = static_cast<int>(refined_);
    if (state.floor == -simd::kInfinity && span > k)
      state.floor = std::nextafter(limit_for(scores, span, k).at, -simd::kInfinity);
    for (int i = 0; i < span; i += simd::kLanes) {
      if (state.found + 2 * kSlack > room_)  // room to write a vector, and to read whole ones later
        state.floor = std::max(state.floor, thin_out(strongest, places, state.found, k));
      const simd::Vec v = simd::load(scores + i);
      const simd::Bits bits = simd::above(v, simd::set(state.floor)) & simd::first_bits(span - i);
      simd::compress(strongest + state.found, v, bits);
      simd::compress(places + state.found, numbers_ + i, bits);
      state.found += simd::count(bits);
    }
  }

  void choose_every_key() {
    chosen_ = keys_.places;
    taken_ = static_cast<int>(tokens_);
    mass_ = 1;
    rest_.assign(whole_values_, 0.0f);
  }

  // The strongest keys of a cluster, their mass, and what all others give to its queries.
  void settle(int64_t c) {
    State& state = states_[c];
    chosen_ = nullptr;
    taken_ = 0;
    mass_ = 0;
    rest_.assign(sums_.begin() + c * whole_values_, sums_.begin() + (c + 1) * whole_values_);
    if (refined_) {
      float* strongest = strongest_.get() + c * room_;
      int32_t* places = places_.get() + c * room_;
      keep_highest(strongest, places, state.found, static_cast<int>(refined_));
      for (int i = 0; i < state.found; ++i) places[i] = keys_.places[places[i]];
      const simd::Vec origin = simd::set(state.top);
      for (int i = 0; i < state.found; i += simd::kLanes)
        simd::store(strongest + i, simd::sub(simd::zero(), simd::exp(simd::sub(simd::load(strongest + i), origin))));
      for (int i = 0; i < state.found; ++i) mass_ -= strongest[i];
      gather<false>(rest_.data(), nullptr, strongest, places, state.found, values_.base, values_.stride, a_.value_width);
      chosen_ = places;
      taken_ = state.found;
    }
    mass_ /= state.total;
    for (float& x : rest_) x /= state.total;
  }

  // The output of a cluster's queries.
  void refine(int64_t c) {
    const int32_t* members = members_.data() + starts_[c];
    const int64_t size = starts_[c + 1] - starts_[c];
    if (!taken_) {
      for (int64_t i = 0; i < size; ++i) write_row<T>(a_.out, batch_, head_, members[i], rest_.data(), a_.value_width);
      return;
    }
    const int blocks = (taken_ + kBlockRows - 1) / kBlockRows, padded = blocks * kBlockRows;
    own_keys_.resize(padded * a_.width);
    own_values_.resize(taken_ * whole_values_);
    own_scores_.resize(kRowsAtOnce * padded);
    for (int b = 0; b < blocks; ++b)
      pack_lanes(Picked<T>{keys_.base, keys_.stride, chosen_ + b * kBlockRows},
                 std::min(kBlockRows, taken_ - b * kBlockRows), a_.width, nullptr, a_.scale,
                 own_keys_.data() + b * kBlockRows * a_.width);
    pack_rows(Picked<T>{values_.base, values_.stride, chosen_}, taken_, a_.value_width, nullptr, own_values_.data());
    for (int64_t i = 0; i < size; i += kRowsAtOnce)
      refine_some(members + i, static_cast<int>(std::min<int64_t>(kRowsAtOnce, size - i)), blocks);
  }

  void refine_some(const int32_t* members, int rows, int blocks) {
    const int padded = blocks * kBlockRows;
    const float* left[kRowsAtOnce];
    if constexpr (sizeof(T) == sizeof(float)) {
      for (int r = 0; r < rows; ++r) left[r] = queries_.base + members[r] * queries_.stride;
    } else {
      own_queries_.resize(kRowsAtOnce * whole_);
      pack_rows(Picked<T>{queries_.base, queries_.stride, members}, rows, a_.width, nullptr, own_queries_.data());
      for (int r = 0; r < rows; ++r) left[r] = own_queries_.data() + r * whole_;
    }
    for (int b = 0; b < blocks; ++b)
      multiply_rows(rows, LeftRows{left}, own_keys_.data() + b * kBlockRows * a_.width, kBlockRows, a_.width, kBlockRows,
                    [&](int r, int64_t lane, simd::Vec sum) {
                      simd::store(own_scores_.data() + r * padded + b * kBlockRows + lane, capped(sum, a_.softcap));
                    });
    for (int r = 0; r < rows; ++r) {
      to_own_weights(own_scores_.data() + r * padded);
      left[r] = own_scores_.data() + r * padded;
    }
    out_.resize(kRowsAtOnce * whole_values_);
    multiply_rows(rows, LeftRows{left}, own_values_.data(), whole_values_, taken_, whole_values_,
                  [&](int r, int64_t e, simd::Vec sum) {
                    simd::store(out_.data() + r * whole_values_ + e, simd::add(sum, simd::load(rest_.data() + e)));
                  });
    for (int r = 0; r < rows; ++r)
      write_row<T>(a_.out, batch_, head_, members[r], out_.data() + r * whole_values_, a_.value_width);
  }

  // A query's softmax over the strongest keys, scaled to their mass.
  void to_own_weights(float* scores) const {
    simd::Vec highest = simd::set(-simd::kInfinity);
    for (int i = 0; i < taken_; i += simd::kLanes)
      highest = simd::higher(simd::choose(simd::first_bits(taken_ - i), simd::load(scores + i), highest), highest);
    const simd::Vec origin = simd::set(simd::highest(highest));
    simd::Vec total = simd::zero();
    for (int i = 0; i < taken_; i += simd::kLanes) {
      const simd::Vec weight = simd::exp(simd::sub(simd::load(scores + i), origin));
      simd::store(scores + i, weight);
      total = simd::add(total, simd::choose(simd::first_bits(taken_ - i), weight, simd::zero()));
    }
    const simd::Vec factor = simd::set(mass_ / simd::sum(total));
    for (int i = 0; i < taken_; i += simd::kLanes) simd::store(scores + i, simd::mul(simd::load(scores + i), factor));
  }

  const Clustering& a_;
  const int64_t batch_, head_, tokens_, count_, first_, refined_;
  const bool every_;
  const int64_t whole_, whole_values_, room_;
  const Picked<T> keys_, values_, queries_;
  std::vector<int64_t> starts_;
  std::vector<int32_t> members_;
  std::vector<float> centroids_, sums_;
  std::vector<State> states_;
  std::unique_ptr<float[]> scores_, strongest_;
  std::unique_ptr<int32_t[]> places_;
  int32_t numbers_[kSpan];  // of the keys of a span
  // Of the cluster that is being refined.
  const int32_t* chosen_ = nullptr;
  int taken_ = 0;
  float mass_ = 0;
  std::vector<float> rest_, own_keys_, own_values_, own_scores_, own_queries_, out_;
};

template <typename T>
void attend_clusters(const Clustering& a) {
  // A head is shared by threads where there are more of them than heads.
  const int64_t heads = a.batches * a.heads, parts = std::max<int64_t>(1, a.threads / std::max<int64_t>(heads, 1));
  for_each_item(heads * parts, a.threads, [&](int64_t i) {
    const int64_t batch = i / parts / a.heads, head = i / parts % a.heads, clusters = a.clusters_of(batch);
    const int64_t first = clusters * (i % parts) / parts, last = clusters * (i % parts + 1) / parts;
    if (last > first) Clusters<T>(a, batch, head, first, last).run();
  });
}
