// What one attention call works on, as it crosses from Python: addresses, sizes and strides; and the rule of each row.
//
// The definitions are hf_sparsify/patcher/methods (rows.py, top_k.py, top_theta.py, compensation.py); what is here is
// only faster.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "exponentials.h"

constexpr int64_t kMostWidth = 256;  // of a query, key or value
constexpr int64_t kPanel = 16;       // rounded keys side by side

enum Placement { kTopK = 0, kPostSoftmax = 1, kMaxRelative = 2, kPreSoftmax = 3 };
enum Compensation { kNone = 0, kSdc = 1, kSdcVmc = 2 };
enum Denominator { kExact = 0, kExpThreshold = 1, kOffline = 2, kRoundedKeys = 3 };
enum Flag : uint8_t { kFallback = 1, kRescued = 2 };

// [batch, head, row, width] with elements of one row side by side; strides in elements. data is null for what is absent.
struct Strided {
  const char* data = nullptr;
  int64_t batch = 0, head = 0, row = 0;
};

// Keys rounded to 8 bits, by position (see rounded_keys.py); a step rounds those that it sees first. codes is null where
// there are none.
struct Rounded {
  int8_t* codes = nullptr;                     // [batch, group, panels, width, kPanel]
  float *steps = nullptr, *errors = nullptr;   // [batch, group, panels * kPanel]
  int64_t* filled = nullptr;                   // [batch, 2]
  int64_t panels = 0;
};

struct Attention {
  int64_t batches, heads, groups, queries, keys;
  int64_t width;        // of a query and a key
  int64_t value_width;  // of a value and an output row
  bool bf16;            // how query, key, value and output are stored; else float32
  Strided query, key, value, out;
  float scale, softcap;  // softcap 0: none
  Strided bias;          // float32 [batch, head, query, key]; by distance its rows overlap, one entry apart
  const float* sinks;    // [heads]
  const int64_t *first, *last;  // a row sees keys first <= j < last: [batch, queries]
  int64_t range_batch;          // stride of both; 0 if all sequences share them

  int64_t k;                      // kept per row; 0: the fraction below
  int64_t share, share_of;        // keeps ceil(length * share / share_of)
  int64_t min_length;             // shorter rows keep all
  int placement;                  // kTopK: no thresholds
  int64_t min_keep;
  const float *log_lengths, *theta, *dropped;  // table: [columns], [heads, columns], [heads, columns]
  int64_t columns, shortest, longest;
  int compensation, denominator;
  bool mean_of_dropped;  // VMC: the mean of dropped value rows instead of all visible ones
  const double* value_sum;  // [batch, group, value_width]: of all visible rows of a single query
  Rounded rounded;          // of a single query

  int32_t* kept;    // [batch, heads, queries]
  uint8_t* flags;   // [batch, heads, queries]
  int32_t* v_rows;  // [batch, groups]: of a single query, value rows that some head of a group keeps
  int32_t* k_rows;  // [batch, groups]: of a single query, keys that are read in full
  int threads;
};

// How one row selects. dense: keeps all it sees. k > 0: exactly its k highest. Otherwise: what is above theta.
struct Rule {
  int64_t length = 0;
  bool dense = true;
  bool fallback = false;
  int64_t k = 0;
  float theta = -simd::kInfinity;
  float dropped = std::numeric_limits<float>::quiet_NaN();  // sum of exp(score - maximum), or NaN: to be computed
};

inline int64_t budget_of(const Attention& a, int64_t length) {
  if (length < a.min_length) return length;
  if (a.k) return std::min(a.k, length);
  return std::min(std::max<int64_t>((length * a.share + a.share_of - 1) / a.share_of, 1), length);
}

// Linear in log length between two columns of a table [heads, columns]; the caller has checked the range.
inline float interpolated(const Attention& a, const float* table, int64_t head, int64_t length) {
  const float* row = table + head * a.columns;
  const float wanted = std::log(static_cast<float>(length));
  const int64_t last = a.columns - 1;
  int64_t right = std::lower_bound(a.log_lengths, a.log_lengths + a.columns, wanted) - a.log_lengths;
  right = std::min(std::clamp<int64_t>(right, 1, std::max<int64_t>(last, 1)), last);
  const int64_t left = std::max<int64_t>(right - 1, 0);
  const float gap = std::max(a.log_lengths[right] - a.log_lengths[left], 1e-12f);
  const float share = std::clamp((wanted - a.log_lengths[left]) / gap, 0.0f, 1.0f);
  return row[left] + share * (row[right] - row[left]);
}

inline Rule rule_of(const Attention& a, int64_t head, int64_t length) {
  Rule rule;
  rule.length = length;
  const int64_t budget = budget_of(a, length);
  rule.dense = budget >= length;
  if (rule.dense) return rule;
  const bool known = a.placement != kTopK && a.columns && length >= a.shortest && length <= a.longest;
  rule.fallback = a.placement != kTopK && !known;
  if (!known) {
    rule.k = budget;
    return rule;
  }
  rule.theta = interpolated(a, a.theta, head, length);
  if (a.denominator == kOffline) rule.dropped = interpolated(a, a.dropped, head, length);
  return rule;
}

// Soft-capped scores; the same where there is no cap.
inline simd::Vec capped(simd::Vec scores, float softcap) {
  if (!(softcap > 0)) return scores;
  return simd::mul(simd::set(softcap), simd::tanh(simd::mul(scores, simd::set(1.0f / softcap))));
}

inline float from_bf16(uint16_t half) {
  const uint32_t bits = static_cast<uint32_t>(half) << 16;
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40);  // NaN
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Rows as they are stored: float or bf16.
template <typename T>
struct Stored;

template <>
struct Stored<float> {
  static float get(const float* p) { return *p; }
  static simd::Vec load(const float* p) { return simd::load(p); }
  static simd::Vec load_first(const float* p, int n) { return simd::load_first(p, n); }
};

template <>
struct Stored<uint16_t> {
  static float get(const uint16_t* p) { return from_bf16(*p); }
  static simd::Vec load(const uint16_t* p) { return simd::load_bf16(p); }
  static simd::Vec load_first(const uint16_t* p, int n) {
    uint16_t part[simd::kLanes] = {};
    std::memcpy(part, p, sizeof(uint16_t) * n);
    return simd::load_bf16(part);
  }
};

// The keys that a single query sees: first <= j < last.
inline int64_t first_of(const Attention& a, int64_t batch) { return a.first[batch * a.range_batch]; }
inline int64_t last_of(const Attention& a, int64_t batch) {
  return std::max(a.last[batch * a.range_batch], first_of(a, batch));
}

template <typename T>
const T* row_of(const Strided& s, int64_t batch, int64_t head, int64_t row) {
  return reinterpret_cast<const T*>(s.data) + batch * s.batch + head * s.head + row * s.row;
}

template <typename T>
void write_row(const Strided& s, int64_t batch, int64_t head, int64_t row, const float* from, int64_t width) {
  T* to = const_cast<T*>(row_of<T>(s, batch, head, row));
  if constexpr (sizeof(T) == sizeof(float)) {
    std::memcpy(to, from, sizeof(float) * width);
  } else {
    for (int64_t i = 0; i < width; ++i) to[i] = to_bf16(from[i]);
  }
}
