// The down-projection of a feed-forward layer from each token's k activations of largest magnitude, reading only their
// rows of the weight.
//
// The definition is TopKFeedForward in hf_sparsify/patcher/methods/top_k_feed_forward.py; what is here is only faster.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "attention.h"
#include "candidates.h"
#include "parallel.h"

struct FeedForward {
  int64_t tokens, d_ff, d_model;
  bool bf16;             // how everything is stored; else float32
  Strided hidden, rows;  // [tokens, d_ff] and [d_ff, d_model]: only their `row` strides
  const char* bias;      // [d_model], or null
  char* out;             // [tokens, d_model], contiguous
  int64_t k;             // kept per token, at most d_ff
  int threads;
};

namespace feed_forward {

// Tokens share what they read of the weight: `kColumns` columns of it at a time, so that the rows that come next wait in
// the second-level cache beside the sums of `kTokens` tokens.
constexpr int64_t kTokens = 512, kColumns = 128;
constexpr int64_t kAheadBytes = 256 * 1024;

// The activations that one token keeps, in order of position. Zeros are left out.
struct Kept {
  float* weights;
  int32_t* positions;
  int count;
  bool spoiled;  // by a NaN
};

struct Scratch {
  std::vector<float> magnitudes, sample, sums;
  std::vector<int32_t> positions;
  std::vector<int> done;

  Scratch(const FeedForward& f, int64_t tokens, int64_t columns)
      : magnitudes(f.d_ff + 2 * kSlack),
        sample(kSample + kSlack),
        sums(tokens * columns),
        positions(f.d_ff + 2 * kSlack),
        done(tokens) {}

  static constexpr int kSample = 256;
};

template <typename T>
simd::Vec magnitudes(const T* hidden, int lanes) {
  const simd::Vec v = lanes >= simd::kLanes ? Stored<T>::load(hidden) : Stored<T>::load_first(hidden, lanes);
  return simd::higher(v, simd::sub(simd::zero(), v));
}

// What the k largest of a token probably exceed, from a sample; 0 where that would not help.
template <typename T>
float likely_floor(const FeedForward& f, const T* hidden, Scratch& s) {
  constexpr int kSample = Scratch::kSample, kVectors = kSample / simd::kLanes;
  const int64_t wanted = 2 * kSample * f.k / f.d_ff + 4;  // about twice as many as needed
  if (f.d_ff < 4 * kSample || wanted > kSample / 2) return 0;
  const int64_t step = (f.d_ff - simd::kLanes) / (kVectors - 1);
  for (int i = 0; i < kVectors; ++i)
    simd::store(s.sample.data() + i * simd::kLanes, magnitudes(hidden + i * step, simd::kLanes));
  const float limit = limit_for(s.sample.data(), kSample, static_cast<int>(wanted)).at;
  return limit > 0 ? std::nextafter(limit, 0.0f) : 0;
}

// Gathers a token's magnitudes above a floor; returns how many, or -1 if there is a NaN.
template <typename T>
int collect(const FeedForward& f, const T* hidden, float floor, Scratch& s) {
  int32_t here[simd::kLanes];
  for (int lane = 0; lane < simd::kLanes; ++lane) here[lane] = lane;
  const simd::Vec bound = simd::set(floor), most = simd::set(simd::kInfinity);
  simd::Bits broken = 0;
  int n = 0;
  for (int64_t i = 0; i < f.d_ff; i += simd::kLanes) {
    const simd::Vec size = magnitudes(hidden + i, static_cast<int>(std::min<int64_t>(f.d_ff - i, simd::kLanes)));
    const simd::Bits bits = simd::above(size, bound);
    broken |= simd::not_at_most(size, most);
    simd::compress(s.magnitudes.data() + n, size, bits);
    simd::compress(s.positions.data() + n, here, bits);
    n += simd::count(bits);
    for (int lane = 0; lane < simd::kLanes; ++lane) here[lane] += simd::kLanes;
  }
  return broken ? -1 : n;
}

template <typename T>
void select(const FeedForward& f, int64_t token, Scratch& s, Kept& kept) {
  const T* hidden = row_of<T>(f.hidden, 0, 0, token);
  const int k = static_cast<int>(f.k);
  const float floor = likely_floor(f, hidden, s);
  int n = collect(f, hidden, floor, s);
  if (floor > 0 && n >= 0 && n < k) n = collect(f, hidden, 0.0f, s);
  kept.spoiled = n < 0;
  kept.count = 0;
  if (n < 0) return;
  keep_highest(s.magnitudes.data(), s.positions.data(), n, k);
  kept.count = n;
  for (int i = 0; i < n; ++i) {
    kept.positions[i] = s.positions[i];
    kept.weights[i] = Stored<T>::get(hidden + s.positions[i]);
  }
}

// Every row that some of the tokens keep, in order.
inline void unite(const Kept* kept, int64_t tokens, std::vector<int32_t>& rows, std::vector<char>& marks) {
  if (tokens == 1) return rows.assign(kept->positions, kept->positions + kept->count);
  std::fill(marks.begin(), marks.end(), 0);
  for (int64_t t = 0; t < tokens; ++t)
    for (int i = 0; i < kept[t].count; ++i) marks[kept[t].positions[i]] = 1;
  rows.resize(marks.size());
  int64_t n = 0;
  for (size_t row = 0; row < marks.size(); ++row) {
    rows[n] = static_cast<int32_t>(row);
    n += marks[row];
  }
  rows.resize(n);
}

// Columns whose sums change together. Those of bf16 rows come in pairs, which are quicker to load than one half of a
// vector after the other: their sums lie in the order even places, odd places.
template <typename T>
constexpr int kGroup = sizeof(T) == sizeof(float) ? simd::kLanes : 2 * simd::kLanes;

// Where the sum of a column lies; columns that fill no group come as they are.
template <typename T>
int64_t place_of(int64_t column, int64_t width) {
  constexpr int64_t group = kGroup<T>;
  if (group == simd::kLanes || column >= width / group * group) return column;
  return column / group * group + column % 2 * simd::kLanes + column % group / 2;
}

template <int kGroups, typename T>
void add_strip(float* sum, const float* weights, const int32_t* positions, int count, const T* rows, int64_t stride) {
  constexpr int kVectors = kGroups * kGroup<T> / simd::kLanes;
  simd::Vec acc[kVectors];
  for (int v = 0; v < kVectors; ++v) acc[v] = simd::load(sum + v * simd::kLanes);
  for (int i = 0; i < count; ++i) {
    const T* row = rows + positions[i] * stride;
    const simd::Vec weight = simd::set(weights[i]);
    if constexpr (sizeof(T) == sizeof(float)) {
      for (int v = 0; v < kVectors; ++v) acc[v] = simd::fma(weight, simd::load(row + v * simd::kLanes), acc[v]);
    } else {
      for (int v = 0; v < kVectors; v += 2) {
        simd::Vec even, odd;
        simd::load_bf16_pairs(row + v * simd::kLanes, even, odd);
        acc[v] = simd::fma(weight, even, acc[v]);
        acc[v + 1] = simd::fma(weight, odd, acc[v + 1]);
      }
    }
  }
  for (int v = 0; v < kVectors; ++v) simd::store(sum + v * simd::kLanes, acc[v]);
}

// sum[0..width) += weight * row for each position.
template <typename T>
void add_rows(float* sum, const float* weights, const int32_t* positions, int count, const T* rows, int64_t stride,
              int64_t width) {
  constexpr int kStrip = 8 * simd::kLanes / kGroup<T>;
  int64_t at = 0;
  for (; at + kStrip * kGroup<T> <= width; at += kStrip * kGroup<T>)
    add_strip<kStrip>(sum + at, weights, positions, count, rows + at, stride);
  for (; at + kGroup<T> <= width; at += kGroup<T>)
    add_strip<1>(sum + at, weights, positions, count, rows + at, stride);
  for (; at < width; at += simd::kLanes) {
    const int rest = static_cast<int>(std::min<int64_t>(width - at, simd::kLanes));
    simd::Vec acc = simd::load_first(sum + at, rest);
    for (int i = 0; i < count; ++i)
      acc = simd::fma(simd::set(weights[i]), Stored<T>::load_first(rows + positions[i] * stride + at, rest), acc);
    simd::store_first(sum + at, acc, rest);
  }
}

// One block of columns of the output of some tokens. `used`: the rows that they keep.
template <typename T>
class Block {
 public:
  Block(const FeedForward& f, const std::vector<int32_t>& used, int64_t column, int64_t width)
      : used_(used), rows_(row_of<T>(f.rows, 0, 0, 0) + column), stride_(f.rows.row), column_(column), width_(width) {}

  void run(const FeedForward& f, const Kept* kept, int64_t first, int64_t tokens, Scratch& s) const {
    const T* bias = reinterpret_cast<const T*>(f.bias);
    const int64_t all = used_.size(), part = rows_at_once();
    fetch(0, std::min(part, all));
    for (int64_t c = 0; c < width_; ++c) s.sums[place_of<T>(c, width_)] = bias ? Stored<T>::get(bias + column_ + c) : 0.0f;
    for (int64_t t = 1; t < tokens; ++t) std::copy_n(s.sums.data(), width_, s.sums.data() + t * width_);
    std::fill_n(s.done.data(), tokens, 0);
    for (int64_t start = 0; start < all; start += part) {
      const int64_t end = std::min(start + part, all), ahead = std::min(end + part, all) - end;
      const int32_t last = used_[end - 1];
      for (int64_t t = 0; t < tokens; ++t) {
        // Each token's sums hide the wait for some of the rows of the next part.
        fetch(end + ahead * t / tokens, end + ahead * (t + 1) / tokens);
        const Kept& of = kept[t];
        const int from = s.done[t];
        int to = from;
        while (to < of.count && of.positions[to] <= last) ++to;
        s.done[t] = to;
        if (to > from)
          add_rows(s.sums.data() + t * width_, of.weights + from, of.positions + from, to - from, rows_, stride_,
                   width_);
      }
    }
    write(f, kept, first, tokens, s);
  }

 private:
  // Few enough for the cache, and for few tokens few enough that the first wait is short.
  int64_t rows_at_once() const {
    const int64_t fitting = kAheadBytes / (width_ * static_cast<int64_t>(sizeof(T)));
    return std::max<int64_t>(std::min<int64_t>(fitting, used_.size() / 8), 16);
  }

  void fetch(int64_t from, int64_t to) const {
    for (int64_t i = from; i < to; ++i) {
      const char* row = reinterpret_cast<const char*>(rows_ + used_[i] * stride_);
      for (size_t b = 0; b < width_ * sizeof(T); b += 64) __builtin_prefetch(row + b, 0, 2);
    }
  }

  void write(const FeedForward& f, const Kept* kept, int64_t first, int64_t tokens, Scratch& s) const {
    Strided out;
    out.data = f.out, out.row = f.d_model;
    for (int64_t t = 0; t < tokens; ++t) {
      float* sum = s.sums.data() + t * width_;
      if (kept[t].spoiled) std::fill_n(sum, width_, std::numeric_limits<float>::quiet_NaN());
      T* to = const_cast<T*>(row_of<T>(out, 0, 0, first + t)) + column_;
      if constexpr (sizeof(T) == sizeof(float)) {
        std::memcpy(to, sum, sizeof(float) * width_);
      } else {
        int64_t at = 0;
        for (; at + kGroup<T> <= width_; at += kGroup<T>)
          for (int i = 0; i < simd::kLanes; ++i)
            to[at + 2 * i] = to_bf16(sum[at + i]), to[at + 2 * i + 1] = to_bf16(sum[at + simd::kLanes + i]);
        for (; at < width_; ++at) to[at] = to_bf16(sum[at]);
      }
    }
  }

  const std::vector<int32_t>& used_;
  const T* rows_;
  const int64_t stride_, column_, width_;
};

inline int64_t parts_of(int64_t all, int64_t part) { return (all + part - 1) / part; }

template <typename T>
void project(const FeedForward& f) {
  // Work for every thread: other columns, and where there are more threads than blocks of them, other tokens as well.
  int64_t columns = std::min(kColumns, f.d_model);
  const int64_t groups = std::min(parts_of(f.threads, parts_of(f.d_model, columns)), std::max<int64_t>(f.tokens / 16, 1));
  while (columns > 16 && groups * parts_of(f.d_model, columns) < f.threads) columns /= 2;
  const int64_t blocks = parts_of(f.d_model, columns);
  const int64_t tokens = std::min(kTokens, parts_of(f.tokens, groups)), room = f.k + 2 * kSlack;

  // All memory is taken here: what fails in a parallel region cannot be caught.
  std::vector<Scratch> scratch(f.threads, Scratch(f, tokens, columns));
  std::unique_ptr<float[]> weights(new float[groups * tokens * room]);
  std::unique_ptr<int32_t[]> positions(new int32_t[groups * tokens * room]);
  std::vector<Kept> kept(groups * tokens);
  for (size_t i = 0; i < kept.size(); ++i) kept[i] = {weights.get() + i * room, positions.get() + i * room, 0, false};
  std::vector<std::vector<int32_t>> used(groups, std::vector<int32_t>(f.d_ff));
  std::vector<std::vector<char>> marks(groups, std::vector<char>(f.d_ff));

  on_threads(f.threads, [&] {
    for (int64_t first = 0; first < f.tokens; first += groups * tokens) {
      const int64_t count = std::min(groups * tokens, f.tokens - first), parts = parts_of(count, tokens);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < count; ++t) select<T>(f, first + t, scratch[thread_number()], kept[t]);
#pragma omp for schedule(static)
      for (int64_t g = 0; g < parts; ++g)
        unite(&kept[g * tokens], std::min(tokens, count - g * tokens), used[g], marks[g]);
#pragma omp for schedule(dynamic, 1)
      for (int64_t i = 0; i < parts * blocks; ++i) {
        const int64_t g = i / blocks, column = i % blocks * columns, start = g * tokens;
        Block<T>(f, used[g], column, std::min(columns, f.d_model - column))
            .run(f, &kept[start], first + start, std::min(tokens, count - start), scratch[thread_number()]);
      }
    }
  });
}

// Whether pieces of `size` bytes, `step` bytes apart, are those of a copy that lies side by side.
inline bool same_pieces(const char* pieces, int64_t step, int64_t count, int64_t size, const char* copy) {
  constexpr int64_t kAhead = 24;
  for (int64_t i = 0; i < count; ++i) {
    if (i + kAhead < count) __builtin_prefetch(pieces + (i + kAhead) * step, 0, 2);
    if (std::memcmp(pieces + i * step, copy + i * size, size) != 0) return false;
  }
  return true;
}

}  // namespace feed_forward
