// Comparisons of vectors: a bit per lane, and the lanes that such bits choose.
#pragma once

#include <cstdint>

namespace simd {

using Bits = uint32_t;

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

}  // namespace simd
