// Small matrix products held in registers, and the packing of rows that they read.
//
// The right side lies across the lanes of vectors, the left side is broadcast. What becomes of each vector of the result
// is up to the caller, so that nothing that is only looked at once goes through memory.
#pragma once

#include "weigh.h"

constexpr int kBlockVectors = 2;
constexpr int kBlockRows = kBlockVectors * simd::kLanes;
#if defined(__AVX512F__)
constexpr int kRowsAtOnce = 12;  // 24 sums, 2 vectors of the right side and a broadcast in 32 registers
#elif defined(__AVX2__)
constexpr int kRowsAtOnce = 6;  // 12, 2 and 1 in 16
#else
constexpr int kRowsAtOnce = 4;
#endif
constexpr int64_t kSumRun = 64;  // rows that are added up before they join a longer sum, which keeps its rounding small

inline int64_t whole_vectors(int64_t width) { return (width + simd::kLanes - 1) / simd::kLanes * simd::kLanes; }

// The left side of a product: rows anywhere, or neighbouring columns of a matrix.
struct LeftRows {
  const float* const* rows;
  float operator()(int i, int64_t d) const { return rows[i][d]; }
};
struct LeftColumns {
  const float* matrix;
  int64_t stride;
  float operator()(int i, int64_t d) const { return matrix[d * stride + i]; }
};

// finish(i, v, sum over d of left(i, d) * right[d * stride + v * kLanes ..]).
template <int kRows, int kVectors, typename Left, typename Finish>
inline void multiply_tile(const Left left, const float* right, int64_t stride, int64_t depth, Finish& finish) {
  simd::Vec sums[kRows][kVectors];
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) sums[i][v] = simd::zero();
  for (int64_t d = 0; d < depth; ++d) {
    simd::Vec lanes[kVectors];
    for (int v = 0; v < kVectors; ++v) lanes[v] = simd::load(right + d * stride + v * simd::kLanes);
#pragma GCC unroll 12
    for (int i = 0; i < kRows; ++i) {
      const simd::Vec x = simd::set(left(i, d));
      for (int v = 0; v < kVectors; ++v) sums[i][v] = simd::fma(x, lanes[v], sums[i][v]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kRows; ++i)
    for (int v = 0; v < kVectors; ++v) finish(i, v, sums[i][v]);
}

// The same for a number of rows that is known only now, at most kRows.
template <int kRows, int kVectors, typename Left, typename Finish>
inline void multiply_some(int rows, const Left left, const float* right, int64_t stride, int64_t depth, Finish& finish) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return multiply_some<kRows - 1, kVectors>(rows, left, right, stride, depth, finish);
  }
  multiply_tile<kRows, kVectors>(left, right, stride, depth, finish);
}

// finish(row, column, sum) for at most kRowsAtOnce rows and all columns, which are whole vectors.
template <typename Left, typename Finish>
inline void multiply_rows(int rows, const Left left, const float* right, int64_t stride, int64_t depth, int64_t columns,
                          Finish finish) {
  for (int64_t at = 0; at < columns; at += kBlockRows) {
    auto here = [&](int i, int v, simd::Vec sum) { finish(i, at + v * simd::kLanes, sum); };
    if (columns - at >= kBlockRows)
      multiply_some<kRowsAtOnce, kBlockVectors>(rows, left, right + at, stride, depth, here);
    else
      multiply_some<kRowsAtOnce, 1>(rows, left, right + at, stride, depth, here);
  }
}

// finish(row, column, sum) for all rows of a matrix; a strip of the right side stays in the cache for all of them.
template <typename Finish>
inline void multiply(const float* left, int64_t left_stride, int64_t rows, const float* right, int64_t stride,
                     int64_t depth, int64_t columns, Finish finish) {
  const float* some[kRowsAtOnce];
  for (int64_t at = 0; at < columns; at += kBlockRows)
    for (int64_t i = 0; i < rows; i += kRowsAtOnce) {
      const int count = static_cast<int>(std::min<int64_t>(kRowsAtOnce, rows - i));
      for (int r = 0; r < count; ++r) some[r] = left + (i + r) * left_stride;
      multiply_rows(count, LeftRows{some}, right + at, stride, depth, std::min<int64_t>(kBlockRows, columns - at),
                    [&](int r, int64_t e, simd::Vec sum) { finish(i + r, at + e, sum); });
    }
}

// Rows of a matrix at given places.
template <typename T>
struct Picked {
  const T* base;
  int64_t stride;
  const int32_t* places;
  const T* row(int64_t i) const { return base + places[i] * stride; }
  Picked from(int64_t i) const { return {base, stride, places + i}; }
};

// Asks for rows that lie apart all at once; one after the other each would be waited for.
template <typename T>
inline void fetch_rows(const Picked<T>& rows, int64_t count, int64_t width) {
  for (int64_t r = 0; r < count; ++r) {
    const char* row = reinterpret_cast<const char*>(rows.row(r));
    for (int64_t at = 0; at < width * static_cast<int64_t>(sizeof(T)); at += 64) __builtin_prefetch(row + at);
  }
}

// to[d * kBlockRows + r] = factor * (row r - origin)[d] for at most kBlockRows rows, 0 past the last. An origin has
// whole vectors.
template <typename T>
inline void pack_lanes(const Picked<T>& rows, int count, int64_t width, const float* origin, float factor, float* to) {
  fetch_rows(rows, count, width);
  const simd::Vec by = simd::set(factor);
  for (int first = 0; first < kBlockRows; first += simd::kLanes)
    for (int64_t d = 0; d < width; d += simd::kLanes) {
      const int columns = static_cast<int>(std::min<int64_t>(simd::kLanes, width - d));
      const simd::Vec zero = origin ? simd::load(origin + d) : simd::zero();
      simd::Vec square[simd::kLanes];
      for (int r = 0; r < simd::kLanes; ++r) {
        if (first + r >= count) {
          square[r] = simd::zero();
          continue;
        }
        const T* row = rows.row(first + r) + d;
        const simd::Vec x = columns == simd::kLanes ? Stored<T>::load(row) : Stored<T>::load_first(row, columns);
        square[r] = simd::mul(simd::sub(x, zero), by);
      }
      simd::transpose(square);
      for (int e = 0; e < columns; ++e) simd::store(to + (d + e) * kBlockRows + first, square[e]);
    }
}

// to[r * whole_vectors(width) + d] = (row r - origin)[d], 0 past the width.
template <typename T>
inline void pack_rows(const Picked<T>& rows, int64_t count, int64_t width, const float* origin, float* to) {
  const int64_t whole = whole_vectors(width);
  for (int64_t r = 0; r < count; ++r, to += whole) {
    if (r % kBlockRows == 0) fetch_rows(rows.from(r), std::min<int64_t>(kBlockRows, count - r), width);
    const T* row = rows.row(r);
    if (origin)
      for (int64_t d = 0; d < width; ++d) to[d] = Stored<T>::get(row + d) - origin[d];
    else
      for (int64_t d = 0; d < width; ++d) to[d] = Stored<T>::get(row + d);
    for (int64_t d = width; d < whole; ++d) to[d] = 0;
  }
}

// sum[0..width) = all rows added up.
template <typename T>
inline void sum_rows(const Picked<T>& rows, int64_t count, int64_t width, float* sum) {
  static const struct Ones {
    float values[kSumRun];
    Ones() { std::fill_n(values, kSumRun, 1.0f); }
  } ones;
  float run[kMostWidth];
  std::fill_n(sum, width, 0.0f);
  for (int64_t at = 0; at < count; at += kSumRun) {
    const int64_t some = std::min(kSumRun, count - at);
    std::fill_n(run, width, 0.0f);
    gather<false>(run, nullptr, ones.values, rows.places + at, static_cast<int>(some), rows.base, rows.stride, width);
    for (int64_t d = 0; d < width; ++d) sum[d] += run[d];
  }
}
