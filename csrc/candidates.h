// The keys of one row that may be kept: their scores and positions, in order of position, cut down to the highest.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd.h"

// Room that a buffer needs past its last candidate, because compress writes whole vectors.
constexpr int kSlack = simd::kLanes;

// So many candidates a row collects before they are thinned out to about k.
inline int64_t most_candidates(int64_t k) { return 3 * k + 64; }

// Floats as integers in the same order.
inline uint32_t ordered(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
inline float from_ordered(uint32_t order) {
  const uint32_t bits = order >> 31 ? order & 0x7fffffffu : ~order;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline int count_at_least(const float* scores, int n, float limit) {
  const simd::Vec bound = simd::set(limit);
  int found = 0, i = 0;
  for (; i + simd::kLanes <= n; i += simd::kLanes) found += simd::count(simd::at_least(simd::load(scores + i), bound));
  if (i < n) found += simd::count(simd::at_least(simd::load_first(scores + i, n - i), bound) & simd::first_bits(n - i));
  return found;
}

struct Range {
  float low, high;
};

inline Range range_of(const float* scores, int n) {
  simd::Vec low = simd::set(scores[0]), high = low;
  int i = 0;
  for (; i + simd::kLanes <= n; i += simd::kLanes) {
    low = simd::lower(low, simd::load(scores + i));
    high = simd::higher(high, simd::load(scores + i));
  }
  Range range{-simd::highest(simd::sub(simd::zero(), low)), simd::highest(high)};
  for (; i < n; ++i) {
    range.low = std::min(range.low, scores[i]);
    range.high = std::max(range.high, scores[i]);
  }
  return range;
}

// A limit that at least k of n scores reach, 1 <= k <= n, none of them NaN: the k-th highest, or anything between it and
// the next where that is found first. Bisection, first between values, then between neighbouring floats.
struct Limit {
  float at;
  int reached;  // how many scores are at or above it
};

inline Limit limit_for(const float* scores, int n, int k) {
  const Range range = range_of(scores, n);
  uint32_t low = ordered(range.low), high = ordered(range.high);  // low is reached by at least k
  int reached = n;
  for (int step = 0; low < high && reached != k; ++step) {
    uint32_t middle = low + (high - low + 1) / 2;
    if (step < 12) {
      const float value = 0.5f * from_ordered(low) + 0.5f * from_ordered(high);
      middle = std::clamp(ordered(value), low + 1, high);
    }
    const int found = count_at_least(scores, n, from_ordered(middle));
    if (found >= k) {
      low = middle;
      reached = found;
    } else {
      high = middle - 1;
    }
  }
  return {from_ordered(low), reached};
}

// Leaves what is chosen of a vector of candidates at a time, in order; returns how many are left.
template <typename Choose>
inline int keep_if(float* scores, int32_t* keys, int n, Choose chosen) {
  int kept = 0;
  for (int i = 0; i < n; i += simd::kLanes) {
    const simd::Vec v = simd::load(scores + i);
    simd::Bits bits = chosen(v, simd::first_bits(n - i));
    simd::compress(scores + kept, v, bits);
    simd::compress(keys + kept, keys + i, bits);
    kept += simd::count(bits);
  }
  return kept;
}

// Leaves the candidates above a limit; returns how many.
inline int keep_above(float* scores, int32_t* keys, int n, float limit) {
  const simd::Vec bound = simd::set(limit);
  return keep_if(scores, keys, n, [&](simd::Vec v, simd::Bits valid) { return simd::above(v, bound) & valid; });
}

// Leaves exactly the k highest, among equals the earliest. Returns what a later candidate has to exceed to be one of
// the k highest: -infinity if there are no more than k.
inline float keep_highest(float* scores, int32_t* keys, int& n, int k) {
  if (n <= k) return -simd::kInfinity;
  if (k == 0) {
    n = 0;
    return simd::kInfinity;
  }
  const Limit limit = limit_for(scores, n, k);
  const simd::Vec bound = simd::set(limit.at);
  int level = n;  // how many of those that equal the limit
  if (limit.reached > k) {
    level = k;
    for (int i = 0; i < n; i += simd::kLanes)
      level -= simd::count(simd::above(simd::load(scores + i), bound) & simd::first_bits(n - i));
  }
  n = keep_if(scores, keys, n, [&](simd::Vec v, simd::Bits valid) {
    const simd::Bits higher = simd::above(v, bound) & valid;
    simd::Bits equal = simd::at_least(v, bound) & valid & ~higher;
    while (simd::count(equal) > level) equal &= ~(1u << (31 - __builtin_clz(equal)));
    level -= simd::count(equal);
    return higher | equal;
  });
  return limit.at;
}

// Leaves at least the k highest and about a quarter more at most, for less than it takes to find exactly k. Returns a
// limit that what comes later has to exceed.
inline float thin_out(float* scores, int32_t* keys, int& n, int k) {
  if (n <= k) return -simd::kInfinity;
  const Range range = range_of(scores, n);
  float low = range.low, high = range.high;
  int left = n;
  for (int step = 0; step < 12 && left > k + k / 4; ++step) {
    const float middle = low + 0.4f * (high - low);
    if (!(middle > low && middle < high)) break;
    const int found = count_at_least(scores, n, middle);
    if (found >= k) {
      low = middle;
      left = found;
    } else {
      high = middle;
    }
  }
  if (left > n - n / 4) return keep_highest(scores, keys, n, k);
  const simd::Vec bound = simd::set(low);
  n = keep_if(scores, keys, n, [&](simd::Vec v, simd::Bits valid) { return simd::at_least(v, bound) & valid; });
  return std::nextafter(low, -simd::kInfinity);
}
