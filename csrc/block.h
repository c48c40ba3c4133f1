// A block of rows that meet the keys together, and what is known of each row so far.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "candidates.h"
#include "product.h"

// Keys that meet a block at a time: their scores and rows stay in the first-level cache, together with the queries.
constexpr int kTileKeys = 96;

// Scores of so many keys are made before candidates are taken from them: the more, the closer the limits are to what
// they will be. With a block's rows they take some 400 kB of the second-level cache.
constexpr int kSpanKeys = 32 * kTileKeys;

// Keys whose candidates are listed at a time.
constexpr int kListed = 64;

// What a thread works with. The large parts are left uninitialised, so that only pages that are used are ever touched.
struct Scratch {
  std::vector<float> queries, keys, sums, plain, mean, ahead;
  std::vector<int32_t> list;
  int64_t room;  // for candidates of one row
  std::unique_ptr<float[]> scores, maxima, values;
  std::unique_ptr<int32_t[]> positions;

  Scratch(const Attention& a, int64_t room)
      : queries(a.width * kBlockRows),
        keys(a.bf16 ? kTileKeys * a.width : 0),
        sums(kBlockRows * a.value_width),
        plain(a.mean_of_dropped ? kBlockRows * a.value_width : 0),
        mean(a.value_width),
        ahead(a.placement == kPostSoftmax ? (a.keys / kSpanKeys + 1) * kBlockRows : 0),
        list(kListed * kBlockRows + kSlack),
        room(room),
        scores(new float[std::min<int64_t>(a.keys, kSpanKeys) * kBlockRows]),
        maxima(new float[(std::min<int64_t>(a.keys, kSpanKeys) / 2 + 1) * kBlockRows]),
        values(new float[kBlockRows * room]),
        positions(new int32_t[kBlockRows * room]) {}
};

// Row r of a block is query (start + r) / per_group of head group * per_group + (start + r) % per_group.
struct Block {
  const Attention& a;
  Scratch& s;
  const float *runs, *key_runs;  // sums of value rows and of keys of the group; null where no row needs them
  int64_t batch, group, start, per_group;
  int rows;
  int64_t low, high;                // keys that some row sees
  int64_t common_low, common_high;  // keys that all rows see
  bool totals, maxima;              // whether they are followed
  Rule rules[kBlockRows];
  alignas(64) float top[kBlockRows], total[kBlockRows];  // of all scores so far
  alignas(64) float floor[kBlockRows], theta[kBlockRows];  // what a candidate has to exceed, see open_row
  alignas(64) float first[kBlockRows], last[kBlockRows];   // a row sees keys first <= j < last
  float missing[kBlockRows];  // mass that goes to the mean of the values
  int counts[kBlockRows], kept[kBlockRows], next[kBlockRows];  // candidates: now, once cut, the next to gather
  int64_t full[kBlockRows];                                    // so many candidates are thinned out
  bool spoiled[kBlockRows], saved[kBlockRows];                 // by NaN; from having kept too few
  uint8_t flags[kBlockRows];

  Block(const Attention& a, Scratch& s, const float* runs, const float* key_runs, int64_t batch, int64_t group,
        int64_t start)
      : a(a),
        s(s),
        runs(runs),
        key_runs(key_runs),
        batch(batch),
        group(group),
        start(start),
        per_group(a.heads / a.groups) {
    rows = static_cast<int>(std::min<int64_t>(kBlockRows, a.queries * per_group - start));
  }

  int64_t query_of(int r) const { return (start + r) / per_group; }
  int64_t head_of(int r) const { return group * per_group + (start + r) % per_group; }
  int64_t index_of(int r) const { return (batch * a.heads + head_of(r)) * a.queries + query_of(r); }
  float* values_of(int r) const { return s.values.get() + r * s.room; }
  int32_t* positions_of(int r) const { return s.positions.get() + r * s.room; }
  bool compares_totals() const { return a.placement == kPostSoftmax && totals; }
  float limit_of(int r) const { return ::limit_of(a, rules[r], head_of(r), {top[r], total[r]}); }
};

// A lower bound of log(x) for x > 0, at most 0.015 below: log2 is above the line between powers of two by a parabola.
inline float log_below(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const float between = static_cast<float>(bits & 0x7fffff) * (1.0f / 8388608.0f);
  const float exponent = static_cast<float>((bits >> 23) - 127);
  return (exponent + between + 0.27f * between * (1 - between)) * 0.693147f - 1e-5f;
}

// A lower bound of log(e^a + e^b); b is not infinity.
inline float log_sum_below(float a, float b) {
  if (b == -simd::kInfinity) return a;
  const float high = std::max(a, b), low = std::min(a, b);
  return high + log_below(1 + std::exp(low - high));
}

// A row takes what is above both its floor, which rises as candidates are thinned out, and its threshold, which what
// set_limits knows of the row is added to.
inline void open_row(Block& b, int r) {
  const Rule& rule = b.rules[r];
  b.counts[r] = 0;
  b.floor[r] = -simd::kInfinity;
  b.theta[r] = rule.dense || rule.k ? -simd::kInfinity : rule.theta;
  b.full[r] = rule.k ? std::min<int64_t>(most_candidates(rule.k), b.s.room - kSlack) : b.s.room + 1;  // never full
}

// Queries, ranges and rules.
template <typename T>
void read_rows(Block& b) {
  b.low = b.a.keys, b.high = 0, b.common_low = 0, b.common_high = b.a.keys;
  b.totals = b.maxima = false;
  for (int r = 0; r < kBlockRows; ++r) {
    b.top[r] = -simd::kInfinity, b.total[r] = 0, b.spoiled[r] = false, b.counts[r] = 0;
    b.floor[r] = simd::kInfinity, b.theta[r] = -simd::kInfinity;  // takes nothing
    b.saved[r] = false;
    b.first[r] = 0, b.last[r] = static_cast<float>(b.a.keys);
    b.flags[r] = 0;
    if (r >= b.rows) {
      for (int64_t d = 0; d < b.a.width; ++d) b.s.queries[d * kBlockRows + r] = 0;
      continue;
    }
    const int64_t at = b.batch * b.a.range_batch + b.query_of(r);
    const int64_t first = b.a.first[at], last = std::max(b.a.last[at], first);
    b.rules[r] = rule_of(b.a, b.head_of(r), last - first);
    if (b.rules[r].fallback) b.flags[r] |= kFallback;
    open_row(b, r);
    b.first[r] = static_cast<float>(first), b.last[r] = static_cast<float>(last);
    b.common_low = std::max(b.common_low, first), b.common_high = std::min(b.common_high, last);
    if (last > first) b.low = std::min(b.low, first), b.high = std::max(b.high, last);
    b.totals |= needs_total(b.a, b.rules[r]);
    const T* query = row_of<T>(b.a.query, b.batch, b.head_of(r), b.query_of(r));
    for (int64_t d = 0; d < b.a.width; ++d) b.s.queries[d * kBlockRows + r] = Stored<T>::get(query + d) * b.a.scale;
  }
  b.maxima = b.totals || b.a.placement == kMaxRelative || b.a.compensation != kNone;
}
