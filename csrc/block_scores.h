// Scores of a tile of keys with the rows of a block: a key per line, a row per lane.
#pragma once

#include "block.h"

inline void multiply_keys(const Block& b, const float* keys, int64_t stride, int count, float* scores) {
  multiply(keys, stride, count, b.s.queries.data(), kBlockRows, b.a.width, kBlockRows,
           [&](int64_t j, int64_t row, simd::Vec sum) { simd::store(scores + j * kBlockRows + row, sum); });
}

inline void add_bias(const Block& b, int64_t key, int count, float* scores) {
  for (int r = 0; r < b.rows; ++r) {
    const float* bias = row_of<float>(b.a.bias, b.batch, b.head_of(r), b.query_of(r)) + key;
    for (int j = 0; j < count; ++j) scores[j * kBlockRows + r] += bias[j];
  }
}

inline void cap_scores(const Block& b, int count, float* scores) {
  for (int i = 0; i < count * kBlockRows; i += simd::kLanes)
    simd::store(scores + i, capped(simd::load(scores + i), b.a.softcap));
}

// Scores of some keys with the rows of a block, [keys, kBlockRows].
template <typename T>
void score_tile(Block& b, int64_t key, int count, float* scores) {
  const T* keys = row_of<T>(b.a.key, b.batch, b.group, key);
  if constexpr (sizeof(T) == sizeof(float)) {
    multiply_keys(b, keys, b.a.key.row, count, scores);
  } else {
    for (int j = 0; j < count; ++j)
      for (int64_t d = 0; d < b.a.width; ++d) b.s.keys[j * b.a.width + d] = from_bf16(keys[j * b.a.key.row + d]);
    multiply_keys(b, b.s.keys.data(), b.a.width, count, scores);
  }
  if (b.a.bias.data) add_bias(b, key, count, scores);
  if (b.a.softcap > 0) cap_scores(b, count, scores);
}

// Gives keys that a row does not see no chance.
inline void hide_unseen(const Block& b, int64_t key, int count, float* scores) {
  for (int j = 0; j < count; ++j) {
    const simd::Vec position = simd::set(static_cast<float>(key + j));
    for (int v = 0; v < kBlockVectors; ++v) {
      const int at = v * simd::kLanes;
      float* score = scores + j * kBlockRows + at;
      const simd::Bits seen = simd::at_least(position, simd::load(b.first + at)) &
                              simd::above(simd::load(b.last + at), position);
      simd::store(score, simd::choose(seen, simd::load(score), simd::set(-simd::kInfinity)));
    }
  }
}

// Maxima and, where a row needs it, the sum of exp(score - maximum).
inline void follow_sums(Block& b, int count, const float* scores) {
  for (int v = 0; v < kBlockVectors; ++v) {
    const int at = v * simd::kLanes;
    const simd::Vec before = simd::load(b.top + at);
    simd::Vec top = before;
    for (int j = 0; j < count; ++j) top = simd::higher(simd::load(scores + j * kBlockRows + at), top);
    simd::store(b.top + at, top);
    if (!b.totals) continue;
    // A row that has seen nothing yet: any finite origin will do.
    const simd::Vec origin = simd::choose(simd::above(top, simd::set(-simd::kInfinity)), top, simd::zero());
    simd::Vec added = simd::zero();
    for (int j = 0; j < count; ++j)
      added = simd::add(added, simd::exp_for_sum(simd::sub(simd::load(scores + j * kBlockRows + at), origin)));
    const simd::Vec total = simd::fma(simd::load(b.total + at), simd::exp(simd::sub(before, origin)), added);
    simd::store(b.total + at, simd::choose(simd::above(top, simd::set(-simd::kInfinity)), total, simd::zero()));
  }
}
