// A tile of scores: some keys against a block of query rows. Rows lie across the lanes of vectors, so that all a row
// needs while scores stream by (maximum, sum, limit) is one lane's arithmetic, and keys are read as they are stored.
#pragma once

#include "attention.h"

constexpr int kBlockVectors = 2;
constexpr int kBlockRows = kBlockVectors * simd::kLanes;
#if defined(__AVX512F__)
constexpr int kKeysAtOnce = 12;  // 24 sums, 2 query vectors and a broadcast key in 32 registers
#elif defined(__AVX2__)
constexpr int kKeysAtOnce = 6;  // 12, 2 and 1 in 16
#else
constexpr int kKeysAtOnce = 4;
#endif
constexpr int kTileKeys = 96;  // scores, keys and queries of a tile stay in the first-level cache

// scores[i][row] = keys[i] . queries[row] for kKeysAtOnce keys; queries as [width][kBlockRows].
inline void score_some(const float* const* keys, const float* queries, int64_t width, float* scores) {
  simd::Vec sums[kKeysAtOnce][kBlockVectors];
  for (int i = 0; i < kKeysAtOnce; ++i)
    for (int v = 0; v < kBlockVectors; ++v) sums[i][v] = simd::zero();
  for (int64_t d = 0; d < width; ++d) {
    const simd::Vec q0 = simd::load(queries + d * kBlockRows);
    const simd::Vec q1 = simd::load(queries + d * kBlockRows + simd::kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kKeysAtOnce; ++i) {
      const simd::Vec k = simd::set(keys[i][d]);
      sums[i][0] = simd::fma(k, q0, sums[i][0]);
      sums[i][1] = simd::fma(k, q1, sums[i][1]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kKeysAtOnce; ++i)
    for (int v = 0; v < kBlockVectors; ++v)
      simd::store(scores + i * kBlockRows + v * simd::kLanes, sums[i][v]);
}

// scores[i][row] for `count` keys, at most kTileKeys; `scores` has room for a whole tile.
inline void score_tile(const float* keys, int64_t stride, int count, const float* queries, int64_t width,
                       float* scores) {
  const float* rows[kKeysAtOnce];
  for (int i = 0; i < count; i += kKeysAtOnce) {
    for (int r = 0; r < kKeysAtOnce; ++r) rows[r] = keys + std::min(i + r, count - 1) * stride;
    score_some(rows, queries, width, scores + i * kBlockRows);
  }
}
