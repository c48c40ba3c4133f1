// Keys rounded to 8 bits: how one is made, and the products of many with a few queries. The definition is
// hf_sparsify/patcher/methods/rounded_keys.py.
#pragma once

#include <cmath>

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
    int8_t narrow[kMostWidth], *to = codes + key / kPanel * width * kPanel + key % kPanel;
    for (int64_t d = 0; d < width; ++d) narrow[d] = static_cast<int8_t>(code[d]);
    for (int64_t d = 0; d < width; ++d) to[d * kPanel] = narrow[d];
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

// The products of a panel of codes, without their steps, with kHeads queries [kHeads, width]: sums[head][kPanel].
template <int kHeads>
inline void code_products(const int8_t* panel, const float* queries, int64_t width, float* sums, int64_t stride) {
  constexpr int kVectors = kPanel / simd::kLanes;
  // Two sums for each where there is room in registers, so that they wait less for one another.
  constexpr int kSplit = 2 * kHeads * kVectors <= 8 ? 2 : 1;
  constexpr int64_t kAhead = 2048;  // bytes that are fetched before they are needed
  simd::Vec acc[kSplit * kHeads][kVectors];
  for (auto& sums_of_head : acc)
    for (simd::Vec& sum : sums_of_head) sum = simd::zero();
  for (int64_t d = 0; d < width; d += 4) {
    __builtin_prefetch(panel + d * kPanel + kAhead);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      simd::Vec codes[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) codes[v] = simd::load_int8(panel + (d + i) * kPanel + v * simd::kLanes);
#pragma GCC unroll 4
      for (int h = 0; h < kHeads; ++h) {
        const simd::Vec q = simd::set(queries[h * width + d + i]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) {
          simd::Vec& sum = acc[i % kSplit * kHeads + h][v];
          sum = simd::fma(q, codes[v], sum);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int h = 0; h < kHeads; ++h)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const simd::Vec sum = kSplit == 1 ? acc[h][v] : simd::add(acc[h][v], acc[(kSplit - 1) * kHeads + h][v]);
      simd::store(sums + h * stride + v * simd::kLanes, sum);
    }
}

// The same for any number of heads.
inline void code_products(const int8_t* panel, const float* queries, int64_t heads, int64_t width, float* sums,
                          int64_t stride) {
  for (; heads >= 4; heads -= 4, queries += 4 * width, sums += 4 * stride)
    code_products<4>(panel, queries, width, sums, stride);
  if (heads == 3) code_products<3>(panel, queries, width, sums, stride);
  if (heads == 2) code_products<2>(panel, queries, width, sums, stride);
  if (heads == 1) code_products<1>(panel, queries, width, sums, stride);
}
