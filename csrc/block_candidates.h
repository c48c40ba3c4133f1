// The candidates of a block's rows: what is above their limits, and how the limits rise.
#pragma once

#include "block.h"
#include "candidates.h"

// The highest of every `size` scores of a row.
inline void find_maxima(const Block& b, int size, int groups) {
  const float* scores = b.s.scores.get();
  for (int g = 0; g < groups; ++g)
    for (int v = 0; v < kBlockVectors; ++v) {
      const float* score = scores + g * size * kBlockRows + v * simd::kLanes;
      simd::Vec top = simd::load(score);
      for (int j = 1; j < size; ++j) top = simd::higher(simd::load(score + j * kBlockRows), top);
      simd::store(b.s.maxima.get() + g * kBlockRows + v * simd::kLanes, top);
    }
}

// For the rows of one vector a limit that k of their maxima exceed, by bisection; -infinity where fewer are finite.
inline void limits_below(const Block& b, int groups, int at, float* limits) {
  const float* maxima = b.s.maxima.get() + at;
  alignas(64) float wanted[simd::kLanes];
  for (int i = 0; i < simd::kLanes; ++i) wanted[i] = at + i < b.rows ? static_cast<float>(b.rules[at + i].k) : 0.0f;
  const simd::Vec k = simd::load(wanted), nothing = simd::set(-simd::kInfinity);
  simd::Vec low = simd::set(simd::kInfinity), high = nothing;
  for (int g = 0; g < groups; ++g) {
    const simd::Vec v = simd::load(maxima + g * kBlockRows);
    low = simd::choose(simd::above(v, nothing), simd::lower(v, low), low);
    high = simd::higher(v, high);
  }
  low = simd::sub(low, simd::set(1.0f));  // every finite one exceeds it
  simd::Vec best = nothing;
  for (int step = 0; step < 14; ++step) {
    const simd::Vec middle = step ? simd::mul(simd::add(low, high), simd::set(0.5f)) : low;
    simd::Vec found = simd::zero();
    for (int g = 0; g < groups; ++g)
      found = simd::add(found, simd::choose(simd::above(simd::load(maxima + g * kBlockRows), middle), simd::set(1.0f),
                                            simd::zero()));
    const simd::Bits enough = simd::at_least(found, k);
    best = simd::choose(enough, middle, best);
    low = simd::choose(enough, middle, low);
    high = simd::choose(enough, high, middle);
  }
  simd::store(limits, best);
}

// The k-th highest of a row's candidates, or of the maxima of groups of new scores: its k highest all reach either.
inline void raise_floors(Block& b, int span) {
  int64_t most = 0;
  for (int r = 0; r < b.rows; ++r)
    if (b.floor[r] < simd::kInfinity) most = std::max(most, b.rules[r].k);
  const int size = most ? static_cast<int>(span / (2 * most)) : 0;
  const int groups = size > 1 ? span / size : 0;
  bool fresh = false;
  for (int r = 0; r < b.rows; ++r) {
    const int k = static_cast<int>(b.rules[r].k);
    if (!k || b.floor[r] == simd::kInfinity) continue;
    if (b.counts[r] > k) b.floor[r] = keep_highest(b.values_of(r), b.positions_of(r), b.counts[r], k);
    fresh |= b.counts[r] < k;
  }
  if (!groups || !fresh) return;
  find_maxima(b, size, groups);
  alignas(64) float limits[kBlockRows];
  for (int v = 0; v < kBlockVectors; ++v) limits_below(b, groups, v * simd::kLanes, limits + v * simd::kLanes);
  for (int r = 0; r < b.rows; ++r)
    if (b.rules[r].k && b.floor[r] < simd::kInfinity && b.counts[r] < b.rules[r].k) b.floor[r] = limits[r];
}

// What a row's threshold is added to in the span that begins with a key; while scores still stream by, at most what it
// will be in the end.
inline void set_limits(const Block& b, int64_t key, float* limits) {
  const float* ahead = b.compares_totals() ? b.s.ahead.data() + (key - b.low) / kSpanKeys * kBlockRows : nullptr;
  for (int r = 0; r < kBlockRows; ++r) {
    float base = 0;
    if (b.a.placement == kMaxRelative) base = b.top[r];
    if (ahead) base = log_sum_below(b.top[r] + log_below(b.total[r]), ahead[r]);
    const float bound = b.theta[r] + base;
    limits[r] = bound > b.floor[r] ? bound : b.floor[r];
  }
}

// Where scores of the keys from..to are above the limits, as key * kBlockRows + row; returns how many.
inline int list_above(Block& b, const float* scores, const float* limits, int from, int to) {
  simd::Vec limit[kBlockVectors];
  for (int v = 0; v < kBlockVectors; ++v) limit[v] = simd::load(limits + v * simd::kLanes);
  int32_t* list = b.s.list.data();
  int found = 0;
  for (int j = from; j < to; ++j)
    for (int v = 0; v < kBlockVectors; ++v) {
      const int at = j * kBlockRows + v * simd::kLanes;
      const simd::Bits bits = simd::not_at_most(simd::load(scores + at), limit[v]);
      simd::list_lanes(list + found, at, bits);
      found += simd::count(bits);
    }
  return found;
}

// Adds what was listed to the candidates; key: that of the first score. True if that moved a limit.
inline bool take_listed(Block& b, int found, int32_t key) {
  const float* scores = b.s.scores.get();
  const int32_t* list = b.s.list.data();
  float* values = b.s.values.get();
  int32_t* positions = b.s.positions.get();
  const int64_t room = b.s.room;
  bool moved = false;
  for (int i = 0; i < found; ++i) {
    const int at = list[i], r = at % kBlockRows;
    const float score = scores[at];
    if (!(score < simd::kInfinity)) {
      b.spoiled[r] = true;  // softmax makes NaN of the row
      continue;
    }
    const int n = b.counts[r];
    values[r * room + n] = score;
    positions[r * room + n] = key + at / kBlockRows;
    b.counts[r] = n + 1;
    if (n + 1 < b.full[r]) continue;
    b.floor[r] = thin_out(b.values_of(r), b.positions_of(r), b.counts[r], static_cast<int>(b.rules[r].k));
    moved = true;
  }
  return moved;
}

// Takes what is above the limits. Where that is comes first, as a list, because to ask of each word of bits whether it
// has one more costs a mispredicted branch.
inline void collect_candidates(Block& b, int64_t key, int count) {
  alignas(64) float limits[kBlockRows];
  set_limits(b, key, limits);
  for (int from = 0; from < count; from += kListed) {
    const int found = list_above(b, b.s.scores.get(), limits, from, std::min(from + kListed, count));
    if (take_listed(b, found, static_cast<int32_t>(key))) set_limits(b, key, limits);
  }
}
