// What happens to a row once its keys are chosen: the weights, and the sum of weighted value rows.
#pragma once

#include <cmath>

#include "attention.h"

struct RowSums {
  float highest;  // of all scores that are seen, sinks apart
  float total;    // of exp(score - highest) over all that are seen; ignored where the rule does not need it
};

// Whether a row's rule follows the sum over all exact scores, or over those of rounded keys.
inline bool needs_total(const Attention& a, const Rule& rule) {
  if (rule.dense || a.denominator == kRoundedKeys) return false;
  if (a.placement == kPostSoftmax && !rule.k) return true;
  return a.compensation != kNone && (a.denominator == kExact || rule.fallback);
}

inline bool needs_rounded_total(const Attention& a, const Rule& rule) {
  if (rule.dense || a.denominator != kRoundedKeys) return false;
  return a.compensation != kNone || (a.placement == kPostSoftmax && !rule.k);
}

// The score that a row's keys have to exceed: its threshold, in units of the score.
inline float limit_of(const Attention& a, const Rule& rule, int64_t head, RowSums sums) {
  if (a.placement == kPreSoftmax || sums.highest == -simd::kInfinity) return rule.theta;
  if (a.placement != kPostSoftmax) return rule.theta + sums.highest;
  float reference = sums.highest + std::log(sums.total);
  if (a.sinks) {
    const float sink = a.sinks[head], most = std::max(sink, reference);
    reference = most + std::log(std::exp(sink - most) + std::exp(reference - most));
  }
  return rule.theta + reference;
}

// Scores to weights. Returns the missing mass: what SDC + VMC give to the mean of the values, 0 without them.
inline float to_weights(const Attention& a, const Rule& rule, int64_t head, float* scores, int count, RowSums sums,
                        float limit) {
  float highest = sums.highest;
  const float sink = a.sinks ? a.sinks[head] : -simd::kInfinity;
  if (highest == -simd::kInfinity) highest = 0;
  const float base = std::max(highest, sink);  // no exponential below overflows
  const simd::Vec origin = simd::set(base);
  simd::Vec lanes = simd::zero();
  for (int i = 0; i < count; i += simd::kLanes) {
    const simd::Bits valid = simd::first_bits(count - i);
    const simd::Vec e = simd::choose(valid, simd::exp(simd::sub(simd::load(scores + i), origin)), simd::zero());
    simd::store(scores + i, e);
    lanes = simd::add(lanes, e);
  }
  const float kept = simd::sum(lanes);
  const float sinks = a.sinks ? std::exp(sink - base) : 0.0f;
  float all = kept + sinks, missing = 0;
  if (!rule.dense && a.compensation != kNone && count < rule.length) {
    const float unit = std::exp(highest - base);
    if (!std::isnan(rule.dropped))
      missing = rule.dropped * unit;
    else if (a.denominator == kExpThreshold && !rule.fallback)
      missing = std::exp(std::min(limit - highest, 0.0f)) * static_cast<float>(rule.length - count) * unit;
    else
      missing = std::max(sums.total * unit - kept, 0.0f);
    all += missing;
  }
  const simd::Vec factor = simd::set(all > 0 ? 1.0f / all : 0.0f);
  for (int i = 0; i < count; i += simd::kLanes) simd::store(scores + i, simd::mul(simd::load(scores + i), factor));
  return a.compensation == kSdcVmc && all > 0 ? missing / all : 0.0f;
}

// So many rows before it is needed a value row is fetched.
constexpr int kFetchAhead = 8;

// One strip of kVectors vectors of `gather`.
template <int kVectors, bool kPlain, bool kFetch, typename T>
inline void gather_strip(float* sum, float* plain, const float* weights, const int32_t* keys, int count,
                         const T* values, int64_t row_stride) {
  simd::Vec acc[kVectors], bare[kVectors];
  for (int v = 0; v < kVectors; ++v) {
    acc[v] = simd::load(sum + v * simd::kLanes);
    if (kPlain) bare[v] = simd::load(plain + v * simd::kLanes);
  }
  for (int i = 0; i < count; ++i) {
    const T* row = values + keys[i] * row_stride;
    const simd::Vec weight = simd::set(weights[i]);
    if (kFetch) {
      const char* ahead = reinterpret_cast<const char*>(values + keys[std::min(i + kFetchAhead, count - 1)] * row_stride);
      for (size_t at = 0; at < kVectors * simd::kLanes * sizeof(T); at += 64) __builtin_prefetch(ahead + at);
    }
    for (int v = 0; v < kVectors; ++v) {
      const simd::Vec x = Stored<T>::load(row + v * simd::kLanes);
      acc[v] = simd::fma(weight, x, acc[v]);
      if (kPlain) bare[v] = simd::add(bare[v], x);
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    simd::store(sum + v * simd::kLanes, acc[v]);
    if (kPlain) simd::store(plain + v * simd::kLanes, bare[v]);
  }
}

template <bool kPlain, bool kFetch, typename T>
void gather_all(float* sum, float* plain, const float* weights, const int32_t* keys, int count, const T* values,
                int64_t row_stride, int64_t width) {
  constexpr int kStrip = 4;
  int64_t at = 0;
  for (; at + kStrip * simd::kLanes <= width; at += kStrip * simd::kLanes)
    gather_strip<kStrip, kPlain, kFetch>(sum + at, plain + at, weights, keys, count, values + at, row_stride);
  for (; at + simd::kLanes <= width; at += simd::kLanes)
    gather_strip<1, kPlain, kFetch>(sum + at, plain + at, weights, keys, count, values + at, row_stride);
  const int rest = static_cast<int>(width - at);
  if (!rest) return;
  simd::Vec acc = simd::load_first(sum + at, rest), bare = simd::zero();
  if (kPlain) bare = simd::load_first(plain + at, rest);
  for (int i = 0; i < count; ++i) {
    const simd::Vec x = Stored<T>::load_first(values + keys[i] * row_stride + at, rest);
    acc = simd::fma(simd::set(weights[i]), x, acc);
    if (kPlain) bare = simd::add(bare, x);
  }
  simd::store_first(sum + at, acc, rest);
  if (kPlain) simd::store_first(plain + at, bare, rest);
}

// sum[0..width) += weight * value row for every candidate; with `plain`, plain[0..width) += value row as well. kFetch:
// rows are far apart in memory and read once, so that they are asked for ahead of time.
template <bool kFetch, typename T>
void gather(float* sum, float* plain, const float* weights, const int32_t* keys, int count, const T* values,
            int64_t row_stride, int64_t width) {
  if (plain)
    gather_all<true, kFetch>(sum, plain, weights, keys, count, values, row_stride, width);
  else
    gather_all<false, kFetch>(sum, sum, weights, keys, count, values, row_stride, width);
}

// sum[0..width) += every row first <= j < last.
template <typename T>
void add_rows(float* sum, const T* values, int64_t row_stride, int64_t first, int64_t last, int64_t width) {
  for (int64_t j = first; j < last; ++j) {
    const T* row = values + j * row_stride;
    int64_t at = 0;
    for (; at + simd::kLanes <= width; at += simd::kLanes)
      simd::store(sum + at, simd::add(simd::load(sum + at), Stored<T>::load(row + at)));
    for (; at < width; ++at) sum[at] += Stored<T>::get(row + at);
  }
}
