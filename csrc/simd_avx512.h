// The operations of simd.h with AVX-512: 16 lanes.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "simd_bits.h"

namespace simd {

constexpr int kLanes = 16;
using Vec = __m512;

inline Vec load(const float* p) { return _mm512_loadu_ps(p); }
inline Vec load_first(const float* p, int n) { return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p); }
inline void store(float* p, Vec v) { _mm512_storeu_ps(p, v); }
inline void store_first(float* p, Vec v, int n) { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v); }
inline Vec set(float x) { return _mm512_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec higher(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec lower(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Bits above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
inline Bits at_least(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline Bits not_at_most(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_NLE_UQ); }
inline Vec choose(Bits bits, Vec yes, Vec no) { return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), no, yes); }
inline float highest(Vec v) { return _mm512_reduce_max_ps(v); }
inline float sum(Vec v) { return _mm512_reduce_add_ps(v); }
inline Vec nearest(Vec v) { return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec v, Vec n) { return _mm512_scalef_ps(v, n); }
// v times two to the power of the whole number in the lowest bits of n, for a normal result.
inline Vec raise_exponent(Vec v, Vec n) {
  const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(n), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), exponent));
}

inline Vec load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline Vec load_int8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// Twice as many at once, those at even and those at odd places apart.
inline void load_bf16_pairs(const uint16_t* p, Vec& even, Vec& odd) {
  const __m512i pairs = _mm512_loadu_si512(p);
  even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
  odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}

// Lane i of the result is the sum of the lanes of v[i].
inline Vec sums(const Vec* v) {
  __m512 a[8], b[4], c[2];
  for (int i = 0; i < 8; ++i)
    a[i] = _mm512_add_ps(_mm512_shuffle_f32x4(v[i], v[i + 8], 0x44), _mm512_shuffle_f32x4(v[i], v[i + 8], 0xee));
  for (int i = 0; i < 4; ++i)
    b[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a[i], a[i + 4], 0x88), _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd));
  for (int i = 0; i < 2; ++i)
    c[i] = _mm512_add_ps(_mm512_unpacklo_ps(b[i], b[i + 2]), _mm512_unpackhi_ps(b[i], b[i + 2]));
  const __m512 d = _mm512_add_ps(_mm512_unpacklo_ps(c[0], c[1]), _mm512_unpackhi_ps(c[0], c[1]));
  return _mm512_shuffle_f32x4(d, d, 0xd8);  // quarters were in the order 0, 8, 4, 12
}

// Row i becomes lane i of every row.
inline void transpose(Vec* v) {
  __m512 a[16], b[16];
  for (int i = 0; i < 16; i += 2)
    a[i] = _mm512_unpacklo_ps(v[i], v[i + 1]), a[i + 1] = _mm512_unpackhi_ps(v[i], v[i + 1]);
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m512d even = _mm512_castps_pd(a[i + j]), odd = _mm512_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(even, odd));
      b[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd));
    }
  for (int j = 0; j < 4; ++j) {
    const __m512 even0 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0x88), odd0 = _mm512_shuffle_f32x4(b[j], b[j + 4], 0xdd);
    const __m512 even1 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(b[j + 8], b[j + 12], 0xdd);
    v[j] = _mm512_shuffle_f32x4(even0, even1, 0x88), v[j + 8] = _mm512_shuffle_f32x4(even0, even1, 0xdd);
    v[j + 4] = _mm512_shuffle_f32x4(odd0, odd1, 0x88), v[j + 12] = _mm512_shuffle_f32x4(odd0, odd1, 0xdd);
  }
}

// Writes the chosen lanes one after the other; may write up to kLanes places.
inline void compress(float* to, Vec v, Bits bits) {
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(static_cast<__mmask16>(bits), v));
}
inline void compress(int32_t* to, const int32_t* from, Bits bits) {
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), _mm512_loadu_si512(from)));
}
// The same of first, first + 1, ...
inline void list_lanes(int32_t* to, int32_t first, Bits bits) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i number = _mm512_add_epi32(_mm512_set1_epi32(first), lane);
  _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), number));
}

}  // namespace simd
