// A vector of floats as wide as the build's instruction set, and the few operations that the kernels need.
//
// Three builds of the same source: AVX-512 (16 lanes), AVX2 (8 lanes) and portable (4 lanes, GCC's and Clang's vector
// extension, which is SSE2 on x86 and NEON on ARM). A comparison gives one bit per lane.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace simd {

using Bits = uint32_t;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline int count(Bits bits) { return __builtin_popcount(bits); }
inline int lowest(Bits bits) { return __builtin_ctz(bits); }

// For every mask of some lanes those that it chooses, in order.
template <int kCount>
struct Order {
  alignas(32) int32_t lanes[1 << kCount][kCount];
  constexpr Order() : lanes() {
    for (int mask = 0; mask < 1 << kCount; ++mask) {
      int next = 0;
      for (int lane = 0; lane < kCount; ++lane)
        if (mask >> lane & 1) lanes[mask][next++] = lane;
    }
  }
};

#if defined(__AVX512F__)

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

#elif defined(__AVX2__)

constexpr int kLanes = 8;
using Vec = __m256;

inline __m256i first_lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load(const float* p) { return _mm256_loadu_ps(p); }
inline Vec load_first(const float* p, int n) { return _mm256_maskload_ps(p, first_lanes(n)); }
inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v); }
inline void store_first(float* p, Vec v, int n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
inline Vec set(float x) { return _mm256_set1_ps(x); }
inline Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec higher(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec lower(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Bits above(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }
inline Bits at_least(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
inline Bits not_at_most(Vec a, Vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_NLE_UQ)); }
inline Vec choose(Bits bits, Vec yes, Vec no) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i on = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane);
  return _mm256_blendv_ps(no, yes, _mm256_castsi256_ps(on));
}
inline float highest(Vec v) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline float sum(Vec v) {
  __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  half = _mm_add_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_add_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline Vec nearest(Vec v) { return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline Vec times_power_of_two(Vec v, Vec n) {
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_mul_ps(v, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline Vec raise_exponent(Vec v, Vec n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(n), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), exponent));
}

inline Vec load_bf16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline Vec load_int8(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline void load_bf16_pairs(const uint16_t* p, Vec& even, Vec& odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  even = _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
  odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(static_cast<int>(0xffff0000u))));
}

inline Vec sums(const Vec* v) {
  const Vec a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
  const Vec b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
  return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}

inline void transpose(Vec* v) {
  __m256 a[8], b[8];
  for (int i = 0; i < 8; i += 2)
    a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]), a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      const __m256d even = _mm256_castps_pd(a[i + j]), odd = _mm256_castps_pd(a[i + j + 2]);
      b[i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(even, odd));
      b[i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(even, odd));
    }
  for (int j = 0; j < 4; ++j) {
    v[j] = _mm256_permute2f128_ps(b[j], b[j + 4], 0x20);
    v[j + 4] = _mm256_permute2f128_ps(b[j], b[j + 4], 0x31);
  }
}

inline constexpr Order<8> kOrder;

inline __m256i order_of(Bits bits) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(kOrder.lanes[bits])); }
inline void compress(float* to, Vec v, Bits bits) { _mm256_storeu_ps(to, _mm256_permutevar8x32_ps(v, order_of(bits))); }
inline void compress(int32_t* to, const int32_t* from, Bits bits) {
  const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permutevar8x32_epi32(v, order_of(bits)));
}
inline void list_lanes(int32_t* to, int32_t first, Bits bits) {
  const __m256i number = _mm256_add_epi32(_mm256_set1_epi32(first), order_of(bits));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), number);
}

#else

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

#endif

inline Vec zero() { return set(0.0f); }
inline Bits first_bits(int n) { return n >= kLanes ? (1u << kLanes) - 1 : (1u << n) - 1; }

}  // namespace simd
