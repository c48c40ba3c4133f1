// Keys rounded to 8 bits: how one is made, and the products of many with a few queries. The definition is
// hf_sparsify/patcher/methods/rounded_keys.py.
#pragma once

#include "attention.h"

// Where the rounded keys of a group of heads lie.
struct RoundedGroup {
  int8_t* codes;  // [panels, width, kPanel]
  float *steps, *errors;
  int64_t width;

  RoundedGroup(const Attention& a, int64_t group_row)
      : codes(a.rounded.codes + group_row * a.rounded.panels * a.width * kPanel),
        steps(a.rounded.steps + group_row * a.rounded.panels * kPanel),
        errors(a.rounded.errors + group_row * a.rounded.panels * kPanel),
        width(a.width) {}

  const int8_t* panel_at(int64_t key) const { return codes + key / kPanel * width * kPanel; }

  // Rounds a key. One that is not finite gets a step and an error that are NaN, so that no bound excludes it.
  template <typename T>
  void put(int64_t key, const T* from) {
    alignas(64) float x[kMostWidth], code[kMostWidth];
    simd::Vec most = simd::zero(), squares = simd::zero();
    simd::Bits finite = simd::first_bits(simd::kLanes);
    for (int64_t d = 0; d < width; d += simd::kLanes) {
      const simd::Vec v = whole(from, d);
      const simd::Vec size = simd::higher(v, simd::sub(simd::zero(), v));
      finite &= simd::at_least(simd::set(std::numeric_limits<float>::max()), size);
      most = simd::higher(size, most);
      squares = simd::fma(v, v, squares);
      simd::store(x + d, v);
    }
    const bool broken = finite != simd::first_bits(simd::kLanes);
    const float step = std::max(simd::highest(most) / 127, 1e-30f);
    simd::Vec left = simd::zero();
    for (int64_t d = 0; d < width; d += simd::kLanes) {
      const simd::Vec v = simd::load(x + d), c = simd::nearest(simd::div(v, simd::set(step)));
      const simd::Vec rest = simd::sub(v, simd::mul(c, simd::set(step)));
      left = simd::fma(rest, rest, left);
      simd::store(code + d, broken ? simd::zero() : c);
    }
    int8_t* to = codes + key / kPanel * width * kPanel + key % kPanel;
    for (int64_t d = 0; d < width; ++d) to[d * kPanel] = static_cast<int8_t>(code[d]);
    // The second part is for the rounding of sums, of the exact score as well.
    const float error = std::sqrt(simd::sum(left)) * 1.0001f + std::sqrt(simd::sum(squares)) * kSumRounding * width;
    steps[key] = broken ? std::numeric_limits<float>::quiet_NaN() : step;
    errors[key] = broken ? std::numeric_limits<float>::quiet_NaN() : error;
  }

 private:
  static constexpr float kSumRounding = 2.0f / (1 << 24);

  // kLanes numbers from d on, zeros past the end.
  template <typename T>
  simd::Vec whole(const T* from, int64_t d) const {
    if (d + simd::kLanes <= width) return Stored<T>::load(from + d);
    return Stored<T>::load_first(from + d, static_cast<int>(width - d));
  }
};

// The products of kPanels panels of codes, without their steps, with kHeads queries: sums[head][kPanels * kPanel].
template <int kHeads, int kPanels>
inline void code_products(const int8_t* panel, const float* queries, int64_t width, float* sums, int64_t stride) {
  constexpr int kParts = kPanel / simd::kLanes, kVectors = kPanels * kParts;
  simd::Vec acc[kHeads][kVectors];
  for (int h = 0; h < kHeads; ++h)
    for (int v = 0; v < kVectors; ++v) acc[h][v] = simd::zero();
#pragma GCC unroll 8
  for (int64_t d = 0; d < width; ++d) {
    simd::Vec codes[kVectors];
    for (int v = 0; v < kVectors; ++v)
      codes[v] = simd::load_int8(panel + (v / kParts * width + d) * kPanel + v % kParts * simd::kLanes);
    for (int h = 0; h < kHeads; ++h) {
      const simd::Vec q = simd::set(queries[h * width + d]);
      for (int v = 0; v < kVectors; ++v) acc[h][v] = simd::fma(q, codes[v], acc[h][v]);
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int v = 0; v < kVectors; ++v) simd::store(sums + h * stride + v * simd::kLanes, acc[h][v]);
}

// The same for any number of heads. queries: [heads, width]; sums: [heads, stride].
template <int kPanels>
inline void code_products(const int8_t* panel, const float* queries, int64_t heads, int64_t width, float* sums,
                          int64_t stride) {
  for (; heads >= 4; heads -= 4, queries += 4 * width, sums += 4 * stride)
    code_products<4, kPanels>(panel, queries, width, sums, stride);
  if (heads == 3) code_products<3, kPanels>(panel, queries, width, sums, stride);
  if (heads == 2) code_products<2, kPanels>(panel, queries, width, sums, stride);
  if (heads == 1) code_products<1, kPanels>(panel, queries, width, sums, stride);
}
