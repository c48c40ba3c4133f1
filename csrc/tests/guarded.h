// Random inputs in memory of exactly their size: the address sanitizer reports every step past an end, or into a gap
// between two rows.
#pragma once

#include <sanitizer/asan_interface.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <vector>

#include "../attention.h"

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

// The same numbers from every compiler (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(next() % (high - low + 1)); }
  bool once_in(int64_t times) { return between(1, times) == 1; }
  float real() { return static_cast<float>(between(-1000000, 1000000)) * 1e-6f; }
  template <typename T, size_t n>
  T one_of(const T (&choices)[n]) {
    return choices[between(0, n - 1)];
  }

 private:
  uint64_t state_;
};

template <typename T>
T stored(float x) {
  if constexpr (sizeof(T) == sizeof(float))
    return x;
  else
    return to_bf16(x);
}

inline double number(double x) { return x; }
inline float number(float x) { return x; }
inline float number(uint16_t x) { return from_bf16(x); }

// Numbers in a row, allocated to the element. None: no address.
template <typename T>
class Line {
 public:
  Line(int64_t size, T value) : size_(size), data_(size ? new T[size] : nullptr) {
    std::fill_n(data_.get(), size, value);
  }
  T* data() const { return data_.get(); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data_[i]; }

 private:
  int64_t size_;
  std::unique_ptr<T[]> data_;
};

// [batches, heads, rows, width], laid out at random: heads or rows first, side by side or with gaps.
template <typename T>
class Tensor {
 public:
  Tensor(Random& random, int64_t batches, int64_t heads, int64_t rows, int64_t width)
      : batches_(batches), heads_(heads), rows_(rows), width_(width), line_(lay_out(random), stored<T>(kNaN)) {
    std::vector<bool> used(line_.size());
    each([&](int64_t b, int64_t h, int64_t i) {
      for (int64_t d = 0; d < width_; ++d) used[b * strided_.batch + h * strided_.head + i * strided_.row + d] = true;
    });
    for (int64_t i = 0; i < line_.size(); ++i)
      if (!used[i]) ASAN_POISON_MEMORY_REGION(line_.data() + i, sizeof(T));
    strided_.data = reinterpret_cast<const char*>(line_.data());
  }
  ~Tensor() { ASAN_UNPOISON_MEMORY_REGION(line_.data(), line_.size() * sizeof(T)); }
  Tensor(const Tensor&) = delete;

  const Strided& strided() const { return strided_; }
  T* row(int64_t b, int64_t h, int64_t i) const {
    return line_.data() + b * strided_.batch + h * strided_.head + i * strided_.row;
  }
  float at(int64_t b, int64_t h, int64_t i, int64_t d) const { return number(row(b, h, i)[d]); }
  template <typename Make>
  void fill(Make make) const {
    each([&](int64_t b, int64_t h, int64_t i) {
      for (int64_t d = 0; d < width_; ++d) row(b, h, i)[d] = stored<T>(make());
    });
  }

 private:
  int64_t lay_out(Random& random) {
    const int64_t gap = random.once_in(3) ? 8 : 0;
    if (random.once_in(2)) {
      strided_.row = width_ + gap;
      strided_.head = (rows_ + random.between(0, 2)) * strided_.row;
      strided_.batch = heads_ * strided_.head;
    } else {
      strided_.head = width_ + gap;
      strided_.row = heads_ * strided_.head;
      strided_.batch = (rows_ + random.between(0, 2)) * strided_.row;
    }
    if (!rows_) return 0;
    return (batches_ - 1) * strided_.batch + (heads_ - 1) * strided_.head + (rows_ - 1) * strided_.row + width_;
  }
  template <typename Work>
  void each(Work work) const {
    for (int64_t b = 0; b < batches_; ++b)
      for (int64_t h = 0; h < heads_; ++h)
        for (int64_t i = 0; i < rows_; ++i) work(b, h, i);
  }

  const int64_t batches_, heads_, rows_, width_;
  Strided strided_;
  Line<T> line_;
};

template <typename Left, typename Right>
double dot(const Left* left, const Right* right, int64_t width) {
  double sum = 0;
  for (int64_t d = 0; d < width; ++d) sum += static_cast<double>(number(left[d])) * number(right[d]);
  return sum;
}

template <typename T>
void add_times(std::vector<double>& sum, double weight, const T* row) {
  for (size_t e = 0; e < sum.size(); ++e) sum[e] += weight * number(row[e]);
}

inline bool wrong(const char* what) {
  std::printf("%s\n", what);
  return false;
}

// How near a stored result has to be to the reference.
template <typename T>
bool near(float found, double expected, double scale) {
  if (std::isnan(expected)) return std::isnan(found);
  const double rounding = sizeof(T) == sizeof(float) ? 0 : std::fabs(expected) / 200;
  return std::fabs(found - expected) <= 3e-5 * (1 + scale) + rounding;
}

// Compares a row; says where it is wrong.
template <typename T>
bool same_row(const T* found, const std::vector<double>& expected, const char* what) {
  double scale = 0;
  for (double x : expected) scale = std::fmax(scale, std::fabs(x));
  for (size_t e = 0; e < expected.size(); ++e) {
    const float x = number(found[e]);
    if (near<T>(x, expected[e], scale)) continue;
    std::printf("column %zu is %g, not %g\n", e, x, expected[e]);
    return wrong(what);
  }
  return true;
}
