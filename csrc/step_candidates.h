// The candidates among all scores of a single query.
#pragma once

#include <cmath>

#include "candidates.h"

// Leaves the scores above a limit, with their positions as keys; returns how many.
inline int collect_above(float* scores, int32_t* keys, const int32_t* positions, int length, float limit) {
  const simd::Vec bound = simd::set(limit);
  int count = 0;
  for (int i = 0; i < length; i += simd::kLanes) {
    const simd::Vec v = simd::load(scores + i);
    const simd::Bits bits = simd::above(v, bound) & simd::first_bits(length - i);
    if (!bits) continue;
    simd::compress(scores + count, v, bits);
    simd::compress(keys + count, positions + i, bits);
    count += simd::count(bits);
  }
  return count;
}

// Room for the maxima of groups of scores: a group has at least two vectors.
inline int64_t most_maxima(int64_t length) { return length / 2; }

// A limit that only a few more than k scores exceed: the k-th highest of the maxima of groups of them.
inline float limit_above(const float* scores, int length, int64_t k, float* maxima) {
  const int size = static_cast<int>(length / (2 * k * simd::kLanes));  // vectors per group
  if (size < 2) return -simd::kInfinity;
  int groups = 0;
  for (int i = 0; i + size * simd::kLanes <= length; i += size * simd::kLanes, groups += simd::kLanes) {
    simd::Vec top = simd::load(scores + i);
    for (int j = 1; j < size; ++j) top = simd::higher(simd::load(scores + i + j * simd::kLanes), top);
    simd::store(maxima + groups, top);
  }
  if (groups < k) return -simd::kInfinity;
  return std::nextafter(limit_for(maxima, groups, static_cast<int>(k)).at, -simd::kInfinity);
}

// Leaves the k highest scores, with their positions as keys; returns how many.
inline int collect_highest(float* scores, int32_t* keys, const int32_t* positions, int length, int64_t k,
                           float* maxima) {
  int count = collect_above(scores, keys, positions, length, limit_above(scores, length, k, maxima));
  keep_highest(scores, keys, count, static_cast<int>(k));
  return count;
}
