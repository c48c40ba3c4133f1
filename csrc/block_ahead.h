// What keys that a block has not met yet add at least to the rows' sums of exponentials. A post-softmax threshold is
// relative to the log-sum-exp of the whole row: the nearer its bound is while the first spans go by, the fewer
// candidates are taken that drop out at the end.
#pragma once

#include <cmath>

#include "block_scores.h"

// Keys whose mean is compared with a query: n e^mean is no more than the sum of n exponentials (Jensen's inequality).
constexpr int64_t kKeyRun = 64;

// The last keys that a block sees count by their true scores: a prompt's rows give much weight to what is close.
constexpr int64_t kNearKeys = 64;

// By so much of their size, more than means are off by rounding, bounds are lowered.
constexpr float kAheadMargin = 2e-4f;

inline bool has_key_runs(const Attention& a) {
  return a.placement == kPostSoftmax && !a.bias.data && !(a.softcap > 0) && a.keys > kSpanKeys;
}

// Adds the runs of keys from..to before the end of every row. A row that begins only among them takes no candidates from
// the spans that they follow.
inline void add_key_runs(Block& b, int64_t from, int64_t to) {
  const int64_t first = (from + kKeyRun - 1) / kKeyRun;
  const int64_t last = std::min(to, b.common_high) / kKeyRun;
  float* scores = b.s.scores.get();
  const simd::Vec share = simd::set(1.0f / kKeyRun), number = simd::set(std::log(static_cast<float>(kKeyRun)));
  for (int64_t run = first; run < last; run += kTileKeys) {
    const int count = static_cast<int>(std::min<int64_t>(kTileKeys, last - run));
    multiply_keys(b, b.key_runs + run * b.a.width, b.a.width, count, scores);
    for (int i = 0; i < count * kBlockRows; i += simd::kLanes)
      simd::store(scores + i, simd::fma(simd::load(scores + i), share, number));
    follow_sums(b, count, scores);
  }
}

// What has been added up so far follows a span: as a logarithm, -infinity where that is nothing or not finite.
inline void note_ahead(Block& b, int64_t span) {
  for (int r = 0; r < kBlockRows; ++r) {
    const bool finite = std::fabs(b.top[r]) < simd::kInfinity && b.total[r] < simd::kInfinity;
    const float margin = kAheadMargin * (1 + std::fabs(b.top[r]));
    b.s.ahead[span * kBlockRows + r] = finite ? b.top[r] + log_below(b.total[r]) - margin : -simd::kInfinity;
  }
}

// For each span a lower bound of the log-sum-exp of the spans behind it and of the row's sink.
template <typename T>
void look_ahead(Block& b) {
  const int64_t spans = (b.high - b.low + kSpanKeys - 1) / kSpanKeys;
  for (int r = 0; r < b.rows && b.a.sinks; ++r) b.top[r] = b.a.sinks[b.head_of(r)], b.total[r] = 1;
  note_ahead(b, spans - 1);
  int64_t end = b.high;
  if (spans > 1) {
    end = std::max(b.high - kNearKeys, b.low + (spans - 1) * kSpanKeys);
    const int near = static_cast<int>(b.high - end);
    score_tile<T>(b, end, near, b.s.scores.get());
    hide_unseen(b, end, near, b.s.scores.get());
    follow_sums(b, near, b.s.scores.get());
  }
  for (int64_t span = spans - 1; span > 0; --span) {
    const int64_t start = b.low + span * kSpanKeys;
    if (b.key_runs) add_key_runs(b, start, end);
    note_ahead(b, span - 1);
    end = start;
  }
  std::fill_n(b.top, kBlockRows, -simd::kInfinity);
  std::fill_n(b.total, kBlockRows, 0.0f);
}
