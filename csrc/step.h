// Attention of a single query per sequence, which is what decoding is: bound by memory. A key is read once for all heads
// of its group, rounded to 8 bits where the caller keeps such keys and no score of a dropped key is needed; of the
// values only the rows that some head keeps.
#pragma once

#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <vector>

#include "parallel.h"
#include "step_candidates.h"
#include "step_rounded.h"
#include "step_scores.h"
#include "step_values.h"
#include "weigh.h"

template <typename T>
class Step {
 public:
  // All memory is taken here: what fails in a parallel region cannot be caught.
  explicit Step(const Attention& a)
      : a_(a),
        per_group_(a.heads / a.groups),
        chunks_((a.keys + kChunk - 1) / kChunk),
        room_(chunks_ * kChunk + 2 * kSlack),
        parts_(std::max<int64_t>(1, std::min(a.threads / std::max<int64_t>(a.batches * a.groups, 1), chunks_))),
        rows_(a.batches * a.heads),
        states_(a.batches * a.heads),
        chunk_top_(rows_.size() * chunks_),
        chunk_total_(rows_.size() * chunks_),
        chunk_spoiled_(rows_.size() * chunks_),
        values_(a, parts_, states_),
        positions_(room_),
        scores_(new float[rows_.size() * room_]),
        keys_(new int32_t[rows_.size() * room_]),
        maxima_(new float[rows_.size() * most_maxima(a.keys)]) {
    std::iota(positions_.begin(), positions_.end(), 0);
    for (int64_t i = 0; i < static_cast<int64_t>(rows_.size()); ++i) {
      const int64_t batch = i / a.heads;
      rows_[i] = rule_of(a, i % a.heads, last(batch) - first(batch));
      totals_ |= needs_total(a, rows_[i]);
    }
    if (FirstStage<T>::serves(a, rows_)) stage_.emplace(a, rows_, room_, scores_.get(), positions_.data());
  }

  // Whether rounded keys were read first.
  bool run() {
    const int64_t groups = a_.batches * a_.groups, rows = rows_.size();
    // A thread pays for starting only if it has about a hundred kilobytes to read.
    const int64_t useful = groups * a_.keys * a_.width * (stage_ ? 1 : sizeof(T)) / 100000;
    const int threads = static_cast<int>(std::clamp<int64_t>(useful, 1, a_.threads));
    on_threads(threads, [&] {
      if (stage_) {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < groups * chunks_; ++i) stage_->score(i / chunks_, i % chunks_);
#pragma omp for schedule(static)
        for (int64_t i = 0; i < rows; ++i) stage_->limit(i, maxima_of(i));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < groups * chunks_; ++i) stage_->look(i / chunks_, i % chunks_);
      } else {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < groups * chunks_; ++i) score(i / chunks_, i % chunks_);
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows; ++i) select(i);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < groups * parts_; ++i) values_.gather_part(i / parts_, i % parts_);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < rows; ++i) {
        values_.write(i);
        write_counts(i);
      }
    });
    if (stage_) stage_->finish();
    return stage_.has_value();
  }

 private:
  static constexpr int64_t kAhead = 32;   // keys that are fetched before they are needed
  static constexpr int64_t kLine = 64;   // bytes

  int64_t first(int64_t batch) const { return first_of(a_, batch); }
  int64_t last(int64_t batch) const { return last_of(a_, batch); }
  // Scores of a row begin at its first key.
  float* scores_of(int64_t row) const { return scores_.get() + row * room_; }
  int32_t* keys_of(int64_t row) const { return keys_.get() + row * room_; }
  const int32_t* positions_of(int64_t row) const { return positions_.data() + first(row / a_.heads); }
  float* maxima_of(int64_t row) const { return maxima_.get() + row * most_maxima(a_.keys); }

  void score(int64_t group_row, int64_t chunk) {
    const int64_t batch = group_row / a_.groups, group = group_row % a_.groups;
    const int64_t begin = first(batch) + chunk * kChunk, end = std::min(begin + kChunk, last(batch));
    if (begin >= end) {
      for (int64_t h = 0; h < per_group_; ++h) note(batch * a_.heads + group * per_group_ + h, chunk, nullptr, 0);
      return;
    }
    const int64_t row_bytes = a_.width * static_cast<int64_t>(sizeof(T));
    for (int64_t key = begin; key < end; key += simd::kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(simd::kLanes, end - key));
      const T* rows[simd::kLanes];
      for (int i = 0; i < simd::kLanes; ++i) {
        rows[i] = row_of<T>(a_.key, batch, group, key + std::min(i, count - 1));
        const char* ahead = reinterpret_cast<const char*>(rows[i] + kAhead * a_.key.row);
        for (int64_t at = 0; at < row_bytes; at += kLine) __builtin_prefetch(ahead + at);
      }
      for (int64_t h = 0; h < per_group_; ++h) {
        const int64_t head = group * per_group_ + h;
        float* to = scores_of(batch * a_.heads + head) + (key - first(batch));
        const simd::Vec sums = products(rows, row_of<T>(a_.query, batch, head, 0), a_.width);
        simd::store(to, finished(a_, simd::mul(sums, simd::set(a_.scale)), batch, head, key, count));
      }
    }
    for (int64_t h = 0; h < per_group_; ++h) {
      const int64_t row = batch * a_.heads + group * per_group_ + h;
      note(row, chunk, scores_of(row) + (begin - first(batch)), static_cast<int>(end - begin));
    }
  }

  void note(int64_t row, int64_t chunk, const float* scores, int count) {
    const ScoreSums sums = sums_of(scores, count, totals_);
    chunk_top_[row * chunks_ + chunk] = sums.highest;
    chunk_total_[row * chunks_ + chunk] = sums.total;
    chunk_spoiled_[row * chunks_ + chunk] = sums.spoiled;
  }

  // What a row keeps, and the weights of that.
  void select(int64_t row) {
    KeptKeys& state = states_[row];
    Rule& rule = rows_[row];
    const int64_t head = row % a_.heads;
    float* scores = scores_of(row);
    int32_t* keys = keys_of(row);
    state.weights = scores;
    state.keys = keys;
    const Known known = stage_ ? known_after_stage(row) : known_of_all(row);
    const RowSums& sums = known.sums;
    if (state.spoiled) return;
    if (rule.fallback) state.flags |= kFallback;
    const float limit = limit_of(a_, rule, head, stage_ ? stage_->reference(row, sums) : sums);
    if (rule.dense)
      state.count = collect_above(scores, keys, known.positions, known.count, -simd::kInfinity);
    else if (!rule.k)
      state.count = above(row, known, limit);
    else
      state.count = collect_highest(scores, keys, known.positions, known.count, rule.k, maxima_of(row));
    state.kept = state.count;
    if (stage_ && a_.denominator == kRoundedKeys) rule.dropped = stage_->dropped(row, keys, state.count, sums.highest);
    state.missing = to_weights(a_, rule, head, scores, state.count, sums, limit);
    // A weight that underflowed hides even a value that is NaN.
    state.count = keep_above(scores, keys, state.count, 0.0f);
  }

  // The exact scores that a row selects from: `count`, at `positions`.
  struct Known {
    int count;
    const int32_t* positions;
    RowSums sums;
  };

  Known known_of_all(int64_t row) {
    RowSums sums{-simd::kInfinity, 0};
    for (int64_t c = 0; c < chunks_; ++c) {
      sums.highest = std::max(sums.highest, chunk_top_[row * chunks_ + c]);
      states_[row].spoiled |= chunk_spoiled_[row * chunks_ + c];
    }
    if (totals_ && sums.highest > -simd::kInfinity)
      for (int64_t c = 0; c < chunks_; ++c)
        sums.total += chunk_total_[row * chunks_ + c] * std::exp(chunk_top_[row * chunks_ + c] - sums.highest);
    return {static_cast<int>(rows_[row].length), positions_of(row), sums};
  }

  // The keys that are not listed are neither kept nor highest.
  Known known_after_stage(int64_t row) {
    int32_t* keys = keys_of(row);
    const int count = stage_->join(row, keys);
    const ScoreSums sums = sums_of(scores_of(row), count, false);
    states_[row].spoiled = sums.spoiled || stage_->spoiled(row);
    return {count, keys, {sums.highest, 0}};
  }

  // Keys above a threshold, or the min_keep highest if those are fewer.
  int above(int64_t row, const Known& known, float limit) {
    const int length = known.count, wanted = static_cast<int>(std::min<int64_t>(a_.min_keep, length));
    float* scores = scores_of(row);
    const simd::Vec bound = simd::set(limit);
    int found = 0;
    for (int i = 0; i < length && found < wanted; i += simd::kLanes)
      found += simd::count(simd::above(simd::load(scores + i), bound) & simd::first_bits(length - i));
    if (found >= wanted) return collect_above(scores, keys_of(row), known.positions, length, limit);
    states_[row].flags |= kRescued;
    return collect_highest(scores, keys_of(row), known.positions, length, wanted, maxima_of(row));
  }

  // What is counted, for whoever asks.
  void write_counts(int64_t row) {
    const int64_t group_row = row / per_group_;
    if (a_.kept) a_.kept[row] = states_[row].kept;
    if (a_.flags) a_.flags[row] = states_[row].flags;
    if (row % per_group_) return;
    if (a_.v_rows) a_.v_rows[group_row] = values_.union_of(row);
    if (a_.k_rows) a_.k_rows[group_row] = stage_ ? stage_->rows_read(group_row) : rows_[row].length;
  }

  const Attention& a_;
  const int64_t per_group_, chunks_, room_, parts_;
  std::vector<Rule> rows_;
  std::vector<KeptKeys> states_;
  std::vector<float> chunk_top_, chunk_total_;
  std::vector<uint8_t> chunk_spoiled_;
  StepValues<T> values_;
  std::vector<int32_t> positions_;
  std::unique_ptr<float[]> scores_;
  std::unique_ptr<int32_t[]> keys_;
  std::unique_ptr<float[]> maxima_;
  std::optional<FirstStage<T>> stage_;
  bool totals_ = false;
};

// Whether rounded keys were read first.
template <typename T>
bool attend_step(const Attention& a) {
  return Step<T>(a).run();
}
