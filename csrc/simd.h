// A vector of floats as wide as the build's instruction set, and the few operations that the kernels need.
//
// Three builds of the same source: AVX-512 (16 lanes), AVX2 (8 lanes) and portable (4 lanes, GCC's and Clang's vector
// extension, which is SSE2 on x86 and NEON on ARM). A comparison gives one bit per lane.
#pragma once

#include <limits>

#if defined(__AVX512F__)
#include "simd_avx512.h"
#elif defined(__AVX2__)
#include "simd_avx2.h"
#else
#include "simd_portable.h"
#endif

namespace simd {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Vec zero() { return set(0.0f); }
inline Bits first_bits(int n) { return n >= kLanes ? (1u << kLanes) - 1 : (1u << n) - 1; }

}  // namespace simd
