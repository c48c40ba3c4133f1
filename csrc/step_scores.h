// Scores of a single query, which lie side by side: products with keys, and what a row needs to know of all of them.
#pragma once

#include "attention.h"

// The products of some keys with one query, for a width that is known: common head sizes.
template <int kVectors, typename T>
inline simd::Vec products_of(const T* const* rows, const T* query) {
  simd::Vec q[kVectors], sums[simd::kLanes];
  for (int v = 0; v < kVectors; ++v) q[v] = Stored<T>::load(query + v * simd::kLanes);
#pragma GCC unroll 16
  for (int i = 0; i < simd::kLanes; ++i) {
    sums[i] = simd::mul(q[0], Stored<T>::load(rows[i]));
#pragma GCC unroll 16
    for (int v = 1; v < kVectors; ++v) sums[i] = simd::fma(q[v], Stored<T>::load(rows[i] + v * simd::kLanes), sums[i]);
  }
  return simd::sums(sums);
}

// The same for any width, a key per lane. Key after key, so that memory is read in order.
template <typename T>
inline simd::Vec products(const T* const* rows, const T* query, int64_t width) {
  switch (width) {
    case 64: return products_of<64 / simd::kLanes>(rows, query);
    case 128: return products_of<128 / simd::kLanes>(rows, query);
  }
  simd::Vec sums[simd::kLanes];
  const int64_t whole = width / simd::kLanes * simd::kLanes;
  const int rest = static_cast<int>(width - whole);
  for (int i = 0; i < simd::kLanes; ++i) {
    sums[i] = simd::zero();
    for (int64_t d = 0; d < whole; d += simd::kLanes)
      sums[i] = simd::fma(Stored<T>::load(query + d), Stored<T>::load(rows[i] + d), sums[i]);
    if (rest)
      sums[i] =
          simd::fma(Stored<T>::load_first(query + whole, rest), Stored<T>::load_first(rows[i] + whole, rest), sums[i]);
  }
  return simd::sums(sums);
}

// Scaled products with the keys from `key` on become scores: bias and cap. count: how many of them there are.
inline simd::Vec finished(const Attention& a, simd::Vec scores, int64_t batch, int64_t head, int64_t key, int count) {
  if (a.bias.data) {
    const float* bias = row_of<float>(a.bias, batch, head, 0) + key;
    scores = simd::add(scores, count == simd::kLanes ? simd::load(bias) : simd::load_first(bias, count));
  }
  return capped(scores, a.softcap);
}

// The sum of exp(score - top).
inline float total_of(const float* scores, int count, float top) {
  const simd::Vec origin = simd::set(top);
  simd::Vec total = simd::zero();
  for (int i = 0; i < count; i += simd::kLanes) {
    const simd::Vec e = simd::exp(simd::sub(simd::load(scores + i), origin));
    total = simd::add(total, simd::choose(simd::first_bits(count - i), e, simd::zero()));
  }
  return simd::sum(total);
}

struct ScoreSums {
  float highest = -simd::kInfinity, total = 0;
  bool spoiled = false;  // by a score that is no number
};

// Of the first `count` of scores in whole vectors; `total` only if it is wanted.
inline ScoreSums sums_of(const float* scores, int count, bool with_total) {
  ScoreSums sums;
  if (!count) return sums;
  simd::Bits numbers = simd::first_bits(simd::kLanes);
  simd::Vec highest = simd::set(-simd::kInfinity);
  for (int i = 0; i < count; i += simd::kLanes) {
    const simd::Bits valid = simd::first_bits(count - i);
    const simd::Vec v = simd::choose(valid, simd::load(scores + i), simd::set(-simd::kInfinity));
    numbers &= simd::at_least(simd::set(std::numeric_limits<float>::max()), v);
    highest = simd::higher(v, highest);
  }
  sums.highest = simd::highest(highest);
  sums.spoiled = numbers != simd::first_bits(simd::kLanes);
  if (with_total && sums.highest > -simd::kInfinity) sums.total = total_of(scores, count, sums.highest);
  return sums;
}
