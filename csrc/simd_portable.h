// The operations of simd.h with GCC's and Clang's vector extension: 4 lanes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "simd_bits.h"

namespace simd {

constexpr int kLanes = 4;
typedef float Vec __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec load_first(const float* p, int n) {
  Vec v = {0, 0, 0, 0};
  std::memcpy(&v, p, sizeof(float) * n);
  return v;
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline void store_first(float* p, Vec v, int n) { std::memcpy(p, &v, sizeof(float) * n); }
inline Vec set(float x) { return Vec{x, x, x, x}; }
inline Vec add(Vec a, Vec b) { return a + b; }
inline Vec sub(Vec a, Vec b) { return a - b; }
inline Vec mul(Vec a, Vec b) { return a * b; }
inline Vec div(Vec a, Vec b) { return a / b; }
inline Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec pick(Ints on, Vec yes, Vec no) { return reinterpret_cast<Vec>((on & reinterpret_cast<Ints>(yes)) | (~on & reinterpret_cast<Ints>(no))); }
inline Vec higher(Vec a, Vec b) { return pick(a > b, a, b); }
inline Vec lower(Vec a, Vec b) { return pick(a < b, a, b); }
inline Bits bits_of(Ints on) { return (on[0] & 1) | (on[1] & 2) | (on[2] & 4) | (on[3] & 8); }
inline Bits above(Vec a, Vec b) { return bits_of(a > b); }
inline Bits at_least(Vec a, Vec b) { return bits_of(a >= b); }
inline Bits not_at_most(Vec a, Vec b) { return bits_of(~(a <= b)); }
inline Vec choose(Bits bits, Vec yes, Vec no) {
  const Ints lane = {1, 2, 4, 8};
  const int32_t all = static_cast<int32_t>(bits);
  return pick((Ints{all, all, all, all} & lane) == lane, yes, no);
}
inline float highest(Vec v) { return std::fmax(std::fmax(v[0], v[1]), std::fmax(v[2], v[3])); }
inline float sum(Vec v) { return (v[0] + v[2]) + (v[1] + v[3]); }
inline Vec nearest(Vec v) {
  const Vec big = set(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
  return (v + big) - big;
}
inline Vec times_power_of_two(Vec v, Vec n) {
  const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
  return v * reinterpret_cast<Vec>(exponent);
}
inline Vec raise_exponent(Vec v, Vec n) {
  typedef uint32_t Words __attribute__((vector_size(16)));  // these may overflow
  return reinterpret_cast<Vec>(reinterpret_cast<Words>(v) + (reinterpret_cast<Words>(n) << 23));
}
inline Vec load_bf16(const uint16_t* p) {
  const Ints wide = {p[0], p[1], p[2], p[3]};
  return reinterpret_cast<Vec>(wide << 16);
}
inline Vec load_int8(const int8_t* p) {
  // Bytes into the highest of four, in two steps that SSE2 has; the shift carries the sign.
  typedef int8_t Bytes __attribute__((vector_size(16)));
  Bytes bytes = {};
  std::memcpy(&bytes, p, 4);
  const Bytes none = {};
  const Bytes pairs = __builtin_shufflevector(none, bytes, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  typedef int16_t Shorts __attribute__((vector_size(16)));
  const Shorts fours = __builtin_shufflevector(Shorts{}, reinterpret_cast<Shorts>(pairs), 0, 8, 1, 9, 2, 10, 3, 11);
  return __builtin_convertvector(reinterpret_cast<Ints>(fours) >> 24, Vec);
}
inline void load_bf16_pairs(const uint16_t* p, Vec& even, Vec& odd) {
  Ints low, high;
  for (int i = 0; i < 4; ++i) low[i] = static_cast<int32_t>(p[2 * i] << 16), high[i] = static_cast<int32_t>(p[2 * i + 1] << 16);
  even = reinterpret_cast<Vec>(low), odd = reinterpret_cast<Vec>(high);
}
inline void transpose(Vec* v) {
  const Vec a = v[0], b = v[1], c = v[2], d = v[3];
  for (int i = 0; i < 4; ++i) v[i] = Vec{a[i], b[i], c[i], d[i]};
}
inline Vec sums(const Vec* v) { return Vec{sum(v[0]), sum(v[1]), sum(v[2]), sum(v[3])}; }
inline void compress(float* to, Vec v, Bits bits) {
  for (; bits; bits &= bits - 1) *to++ = v[lowest(bits)];
}
inline void compress(int32_t* to, const int32_t* from, Bits bits) {
  for (; bits; bits &= bits - 1) *to++ = from[lowest(bits)];
}
inline constexpr Order<4> kOrder;
inline void list_lanes(int32_t* to, int32_t first, Bits bits) {
  for (int i = 0; i < kLanes; ++i) to[i] = first + kOrder.lanes[bits][i];
}

}  // namespace simd
