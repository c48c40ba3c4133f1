// Attention of many queries: top-k and top-theta in one streaming pass over the keys, memory linear in length.
//
// A block of rows meets span after span of keys. Each row holds candidates and a limit below which nothing can be kept
// any more: for top-k the k-th highest so far; for top-theta the threshold plus the row's running maximum or
// log-sum-exp, together with what keys still to come add to that at least. Both only grow, so the candidates are a
// superset that one cut at the end makes exact. Then the kept value rows are gathered, key range by key range for all
// rows of the block, so that they are shared in the cache.
#pragma once

#include <vector>

#include "block_ahead.h"
#include "block_candidates.h"
#include "parallel.h"

// Value rows are added up in runs of so many, from which the sum over any range is quick to make. Sums are never
// subtracted: a row that sees no NaN must not meet one.
constexpr int64_t kRun = 32;

// Value rows of so many bytes stay in the second-level cache while all rows of a block take theirs.
constexpr int64_t kGatheredBytes = 256 * 1024;

// All keys that some row sees, span after span.
template <typename T>
void stream_keys(Block& b) {
  for (int64_t key = b.low; key < b.high; key += kSpanKeys) {
    const int span = static_cast<int>(std::min<int64_t>(kSpanKeys, b.high - key));
    for (int at = 0; at < span; at += kTileKeys) {
      const int count = std::min(kTileKeys, span - at);
      float* scores = b.s.scores.get() + at * kBlockRows;
      score_tile<T>(b, key + at, count, scores);
      if (key + at < b.common_low || key + at + count > b.common_high) hide_unseen(b, key + at, count, scores);
      if (b.maxima) follow_sums(b, count, scores);
    }
    raise_floors(b, span);
    collect_candidates(b, key, span);
  }
}

// Exactly what is kept.
inline void cut_rows(Block& b) {
  for (int r = 0; r < b.rows; ++r) {
    const Rule& rule = b.rules[r];
    if (rule.dense) continue;
    if (rule.k) {
      keep_highest(b.values_of(r), b.positions_of(r), b.counts[r], static_cast<int>(rule.k));
    } else {
      b.counts[r] = keep_above(b.values_of(r), b.positions_of(r), b.counts[r], b.limit_of(r));
    }
  }
}

// Rows with fewer than min_keep candidates go through the keys again, for their min_keep highest.
template <typename T>
bool rescue_rows(Block& b) {
  bool any = false;
  for (int r = 0; r < b.rows; ++r) {
    const Rule& rule = b.rules[r];
    b.saved[r] = !rule.dense && !rule.k && b.counts[r] < std::min(b.a.min_keep, rule.length);
    any |= b.saved[r];
  }
  if (!any) return false;
  for (int r = 0; r < b.rows; ++r) {
    b.floor[r] = simd::kInfinity;
    if (!b.saved[r]) continue;
    b.flags[r] |= kRescued;
    b.rules[r].k = b.a.min_keep;
    open_row(b, r);
  }
  const bool totals = b.totals, maxima = b.maxima;
  b.totals = b.maxima = false;  // they are known
  stream_keys<T>(b);
  b.totals = totals, b.maxima = maxima;
  return true;
}

// Scores of what is kept become weights.
inline void weigh_rows(Block& b) {
  for (int r = 0; r < b.rows; ++r) {
    float* scores = b.values_of(r);
    float top = b.top[r];
    if (!b.maxima) top = b.counts[r] ? range_of(scores, b.counts[r]).high : -simd::kInfinity;
    b.missing[r] = to_weights(b.a, b.rules[r], b.head_of(r), scores, b.counts[r], {top, b.total[r]}, b.limit_of(r));
    if (b.a.kept) b.a.kept[b.index_of(r)] = b.counts[r];
    if (b.a.flags) b.a.flags[b.index_of(r)] = b.flags[r];
    b.kept[r] = b.counts[r];
    // A weight that underflowed hides even a value that is NaN.
    b.counts[r] = keep_above(scores, b.positions_of(r), b.counts[r], 0.0f);
  }
}

// out += missing mass * mean of value rows. mean_first, mean_last: the range that b.s.mean sums at the moment.
template <typename T>
void add_mean(Block& b, int r, float* out, int64_t& mean_first, int64_t& mean_last) {
  const int64_t first = static_cast<int64_t>(b.first[r]), last = static_cast<int64_t>(b.last[r]);
  float* mean = b.s.mean.data();
  const T* values = row_of<T>(b.a.value, b.batch, b.group, 0);
  if (first == mean_first && last >= mean_last && last - mean_last <= kRun) {
    add_rows(mean, values, b.a.value.row, mean_last, last, b.a.value_width);
  } else {
    std::fill_n(mean, b.a.value_width, 0.0f);
    int64_t at = std::min((first + kRun - 1) / kRun * kRun, last);
    add_rows(mean, values, b.a.value.row, first, at, b.a.value_width);
    for (; at + kRun <= last; at += kRun)
      add_rows(mean, b.runs + at / kRun * b.a.value_width, 0, 0, 1, b.a.value_width);
    add_rows(mean, values, b.a.value.row, at, last, b.a.value_width);
  }
  mean_first = first, mean_last = last;
  const float* plain = b.a.mean_of_dropped ? b.s.plain.data() + r * b.a.value_width : nullptr;
  const int64_t members = last - first - (plain ? b.kept[r] : 0);
  const float factor = b.missing[r] / static_cast<float>(std::max<int64_t>(members, 1));
  for (int64_t e = 0; e < b.a.value_width; ++e) out[e] += factor * (plain ? mean[e] - plain[e] : mean[e]);
}

// Key range by key range, so that the rows of the block share value rows in the cache.
template <typename T>
void gather_block(Block& b, bool plain) {
  if (b.high <= b.low) return;
  int64_t kept = 1;
  for (int r = 0; r < b.rows; ++r) kept = std::max<int64_t>(kept, b.counts[r]), b.next[r] = 0;
  const int64_t span = b.high - b.low;
  // At least some candidates of each row in every step.
  const int64_t shared = kGatheredBytes / (b.a.value_width * static_cast<int64_t>(sizeof(T)));
  const int64_t step = std::max(shared, 16 * span / kept);
  const T* values = row_of<T>(b.a.value, b.batch, b.group, 0);
  for (int64_t stop = b.low + step; stop < b.high + step; stop += step) {
    for (int r = 0; r < b.rows; ++r) {
      const int32_t* keys = b.positions_of(r);
      const int from = b.next[r];
      int to = from;
      if (stop >= b.high)
        to = b.counts[r];
      else
        to = static_cast<int>(std::lower_bound(keys + from, keys + b.counts[r], static_cast<int32_t>(stop)) - keys);
      if (to == from) continue;
      gather<false>(b.s.sums.data() + r * b.a.value_width, plain ? b.s.plain.data() + r * b.a.value_width : nullptr,
             b.values_of(r) + from, keys + from, to - from, values, b.a.value.row, b.a.value_width);
      b.next[r] = to;
    }
  }
}

template <typename T>
void write_rows(Block& b) {
  std::fill_n(b.s.sums.data(), b.rows * b.a.value_width, 0.0f);
  const bool plain = b.a.mean_of_dropped;
  if (plain) std::fill_n(b.s.plain.data(), b.rows * b.a.value_width, 0.0f);
  gather_block<T>(b, plain);
  int64_t mean_first = -1, mean_last = -1;
  for (int r = 0; r < b.rows; ++r) {
    float* out = b.s.sums.data() + r * b.a.value_width;
    if (b.missing[r] > 0) add_mean<T>(b, r, out, mean_first, mean_last);
    if (b.spoiled[r]) std::fill_n(out, b.a.value_width, std::numeric_limits<float>::quiet_NaN());
    write_row<T>(b.a.out, b.batch, b.head_of(r), b.query_of(r), out, b.a.value_width);
  }
}

template <typename T>
void attend_block(Block& b) {
  read_rows<T>(b);
  if (b.compares_totals() && b.high > b.low) look_ahead<T>(b);
  stream_keys<T>(b);
  cut_rows(b);
  if (rescue_rows<T>(b)) cut_rows(b);
  weigh_rows(b);
  write_rows<T>(b);
}

// The sums of all full runs of some rows: [batches, groups, keys / run, width].
template <typename T>
std::vector<float> sum_runs(const Attention& a, const Strided& rows, int64_t width, int64_t run) {
  const int64_t runs = a.keys / run, all = a.batches * a.groups * runs;
  std::vector<float> sums(all * width);
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t i = 0; i < all; ++i) {
    const int64_t at = i % runs * run, group = i / runs % a.groups, batch = i / runs / a.groups;
    add_rows(sums.data() + i * width, row_of<T>(rows, batch, group, at), rows.row, 0, run, width);
  }
  return sums;
}

template <typename T>
void attend_rows(const Attention& a) {
  const int64_t rows = a.queries * (a.heads / a.groups), blocks = (rows + kBlockRows - 1) / kBlockRows;
  // Thresholds may keep any number of keys; dense rows keep no more than their budget, or are shorter than min_length.
  const int64_t most = std::max(most_candidates(budget_of(a, a.keys)), a.min_length);
  int64_t room = a.placement == kTopK ? std::min(most, a.keys) : a.keys;
  room += 2 * kSlack;
  std::vector<float> runs, key_runs;
  if (a.compensation == kSdcVmc) runs = sum_runs<T>(a, a.value, a.value_width, kRun);
  if (has_key_runs(a)) key_runs = sum_runs<T>(a, a.key, a.width, kKeyRun);
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < a.threads; ++thread) scratch.emplace_back(a, room);
  for_each_item(a.batches * a.groups * blocks, a.threads, [&](int64_t i) {
    // The last blocks first: under a causal mask they are the longest.
    const int64_t block = blocks - 1 - i % blocks, group = i / blocks % a.groups, batch = i / blocks / a.groups;
    const int64_t before = batch * a.groups + group;
    const float* values = runs.empty() ? nullptr : runs.data() + before * (a.keys / kRun) * a.value_width;
    const float* keys = key_runs.empty() ? nullptr : key_runs.data() + before * (a.keys / kKeyRun) * a.width;
    Block b(a, scratch[thread_number()], values, keys, batch, group, block * kBlockRows);
    attend_block<T>(b);
  });
}
