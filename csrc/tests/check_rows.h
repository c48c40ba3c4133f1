// Random calls of top-k and top-theta attention, row by row against the definition in double.
#pragma once

#include <algorithm>
#include <numeric>

#include "../rows.h"
#include "../step.h"
#include "guarded.h"

// A call and all that it points to. Queries and keys are whole numbers, so that scores are exact and ties are ties.
template <typename T>
struct RowsCall {
  Attention a{};
  Tensor<T> query, key, value, out;
  std::unique_ptr<Tensor<float>> bias;
  Line<float> sinks, log_lengths, theta, dropped;
  Line<int64_t> first, last;
  Line<double> value_sum;
  Line<int32_t> kept, v_rows, k_rows;
  Line<uint8_t> flags;
  Line<int8_t> codes;  // of rounded keys
  Line<float> steps, errors;
  Line<int64_t> filled;

  RowsCall(Random& r, const Attention& sizes)
      : a(sizes),
        query(r, a.batches, a.heads, a.queries, a.width),
        key(r, a.batches, a.groups, a.keys, a.width),
        value(r, a.batches, a.groups, a.keys, a.value_width),
        out(r, a.batches, a.heads, a.queries, a.value_width),
        sinks(r.once_in(3) ? a.heads : 0, 0.0f),
        log_lengths(a.columns, 0.0f),
        theta(a.heads * a.columns, 0.0f),
        dropped(a.heads * a.columns, 0.0f),
        first((a.range_batch ? a.batches : 1) * a.queries, 0),
        last(first.size(), a.keys),
        value_sum(a.queries == 1 && r.once_in(2) ? a.batches * a.groups * a.value_width : 0, 0.0),
        kept(r.once_in(4) ? 0 : a.batches * a.heads * a.queries, -1),
        v_rows(a.queries == 1 && kept.size() ? a.batches * a.groups : 0, -1),
        k_rows(v_rows.size(), -1),
        flags(kept.size(), 255),
        codes(a.denominator == kRoundedKeys || (a.queries == 1 && r.once_in(2)) ? room_for_codes(r) : 0, -128),
        steps(codes.size() / a.width, kNaN),
        errors(steps.size(), kNaN),
        filled(codes.size() ? 2 * a.batches : 0, 0) {
    query.fill([&] { return static_cast<float>(r.between(-2, 2)); });
    key.fill([&] { return static_cast<float>(r.between(-2, 2)); });
    value.fill([&] { return r.real(); });
    choose_ranges(r);
    hide_the_unseen(r);
    if (r.once_in(4)) {
      bias = std::make_unique<Tensor<float>>(r, a.batches, a.heads, a.queries, a.keys);
      bias->fill([&] { return static_cast<float>(r.between(-2, 2)); });
      a.bias = bias->strided();
    }
    for (int64_t h = 0; h < sinks.size(); ++h) sinks[h] = 3 * r.real();
    fill_table(r);
    add_up_values();
    a.query = query.strided(), a.key = key.strided(), a.value = value.strided(), a.out = out.strided();
    a.sinks = sinks.data(), a.first = first.data(), a.last = last.data(), a.value_sum = value_sum.data();
    a.log_lengths = log_lengths.data(), a.theta = theta.data(), a.dropped = dropped.data();
    a.kept = kept.data(), a.flags = flags.data(), a.v_rows = v_rows.data(), a.k_rows = k_rows.data();
    a.rounded = {codes.data(), steps.data(), errors.data(), filled.data(), a.rounded.panels};
  }

  int64_t range_at(int64_t batch, int64_t query) const { return batch * a.range_batch + query; }

 private:
  int64_t room_for_codes(Random& r) {
    a.rounded.panels = (a.keys + kPanel - 1) / kPanel + r.between(0, 2);
    return a.batches * a.groups * a.rounded.panels * kPanel * a.width;
  }

  void choose_ranges(Random& r) {
    const int64_t kind = r.between(0, 4), window = r.between(1, 60);
    for (int64_t at = 0; at < first.size(); at += a.queries) {
      const int64_t left = r.between(0, a.keys), right = r.between(left, a.keys);
      for (int64_t i = 0; i < a.queries; ++i) {
        const int64_t own = std::clamp<int64_t>(a.keys - a.queries + i + 1, 0, a.keys);
        int64_t &from = first[at + i], &to = last[at + i];
        if (kind == 1) to = own;
        if (kind == 2) from = std::max<int64_t>(own - window, 0), to = own;
        if (kind == 3) from = left, to = right;
        if (kind == 4) to = r.between(0, a.keys), from = r.between(0, to + (to < a.keys));  // also first > last
      }
    }
  }

  // NaN in what no row of a sequence sees, and now and then in a key that some row does see.
  void hide_the_unseen(Random& r) {
    for (int64_t b = 0; b < a.batches; ++b)
      for (int64_t j = 0; j < a.keys; ++j) {
        bool seen = false;
        for (int64_t i = 0; i < a.queries; ++i) seen |= first[range_at(b, i)] <= j && j < last[range_at(b, i)];
        if (seen && !r.once_in(5000)) continue;
        for (int64_t g = 0; g < a.groups; ++g) {
          std::fill_n(key.row(b, g, j), a.width, stored<T>(kNaN));
          if (!seen) std::fill_n(value.row(b, g, j), a.value_width, stored<T>(kNaN));
        }
      }
  }

  void fill_table(Random& r) {
    const float level[] = {0, -4, -2, 1};  // of each placement
    for (int64_t c = 0; c < a.columns; ++c) log_lengths[c] = std::log(static_cast<float>(4 << 2 * c));
    a.shortest = a.columns ? r.between(1, 40) : 0, a.longest = r.between(40, r.once_in(2) ? 700 : 7000);
    for (int64_t i = 0; i < theta.size(); ++i) theta[i] = level[a.placement] + r.real(), dropped[i] = 2 + 2 * r.real();
  }

  void add_up_values() {
    for (int64_t i = 0; i < value_sum.size(); ++i) {
      const int64_t e = i % a.value_width, group = i / a.value_width;
      const int64_t b = group / a.groups, at = range_at(b, 0);
      for (int64_t j = first[at]; j < last[at]; ++j) value_sum[i] += value.at(b, group % a.groups, j, e);
    }
  }
};

// Sizes and rule of a call; scores to compute are bounded, so that a large size of one kind meets small ones.
template <typename T>
Attention random_sizes(Random& r, int64_t queries) {
  constexpr int64_t kMost = 400000;  // multiplications
  constexpr int64_t kKeys[] = {0, 1, 3, 17, 40, 97, 130, 300, 700, 3300, 6500};
  Attention a{};
  a.bf16 = sizeof(T) != sizeof(float);
  do {
    a.batches = r.between(1, 2), a.groups = r.between(1, 3), a.heads = a.groups * r.between(1, 3);
    a.queries = queries, a.keys = r.one_of(kKeys);
    a.width = 8 * r.between(1, 32), a.value_width = r.once_in(2) ? a.width : 8 * r.between(1, 32);
  } while (a.batches * a.heads * a.queries * a.keys * a.width > kMost);
  a.scale = r.once_in(2) ? 0.125f : 0.25f;
  if (r.once_in(4)) a.softcap = 8;
  a.range_batch = r.once_in(3) ? 0 : a.queries;
  const int64_t k[] = {1, 2, 5, 16, 40, 64, 1000};
  if (r.once_in(4))
    a.share = r.between(1, 100), a.share_of = 100;
  else
    a.k = r.one_of(k), a.share_of = 1;
  a.min_keep = r.between(1, 3);
  if (r.once_in(2)) a.placement = static_cast<int>(r.between(1, 3)), a.columns = r.between(0, 4);
  a.compensation = static_cast<int>(r.between(0, 2));
  if (a.placement >= kMaxRelative && a.compensation) a.denominator = static_cast<int>(r.between(0, 2));
  if (queries == 1 && (a.compensation || a.placement == kPostSoftmax) && r.once_in(3)) a.denominator = kRoundedKeys;
  a.mean_of_dropped = a.compensation == kSdcVmc && r.once_in(2);
  a.threads = static_cast<int>(r.between(1, 3));
  return a;
}

// What one row should give.
struct Expected {
  std::vector<double> out;
  std::vector<int32_t> keys;  // kept
  uint8_t flags = 0;
  bool spoiled = false;  // by NaN
  bool close = false;    // two scores, or a score and its threshold, differ by about the rounding
};

// A key as its 8-bit codes have it.
template <typename T>
std::vector<float> rounded_key(const T* key, int64_t width) {
  std::vector<float> made(width);
  float most = 0;
  for (int64_t d = 0; d < width; ++d) made[d] = number(key[d]), most = std::max(most, std::fabs(made[d]));
  const float step = std::max(most / 127, 1e-30f);
  for (float& x : made) x = std::nearbyint(x / step) * step;
  return made;
}

template <typename T>
std::vector<double> scores_of(const RowsCall<T>& c, int64_t b, int64_t h, int64_t i, int64_t first, int64_t last,
                              bool rounded = false) {
  const Attention& a = c.a;
  const T* query = c.query.row(b, h, i);
  std::vector<double> scores;
  for (int64_t j = first; j < last; ++j) {
    const T* key = c.key.row(b, h / (a.heads / a.groups), j);
    const double product =
        rounded ? dot(query, rounded_key(key, a.width).data(), a.width) : dot(query, key, a.width);
    const double score = product * a.scale + (c.bias ? c.bias->at(b, h, i, j) : 0);
    scores.push_back(a.softcap > 0 ? a.softcap * std::tanh(score / a.softcap) : score);
  }
  return scores;
}

// The places of what a row keeps. limit: its threshold in units of the score.
inline std::vector<int32_t> chosen(const Attention& a, const Rule& rule, const std::vector<double>& scores,
                                   double limit, Expected& row) {
  std::vector<int32_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  if (rule.dense) return order;
  std::stable_sort(order.begin(), order.end(), [&](int32_t i, int32_t j) { return scores[i] > scores[j]; });
  size_t count = rule.k;
  if (!rule.k) {
    for (double score : scores) count += score > limit, row.close |= std::fabs(score - limit) < 1e-4;
    const size_t least = std::min<size_t>(a.min_keep, scores.size());
    if (count < least) row.flags |= kRescued, count = least;
  }
  if (count && count < scores.size()) {
    const double gap = scores[order[count - 1]] - scores[order[count]];
    row.close |= gap > 0 && gap < 1e-4;
  }
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

template <typename T>
Expected expected_row(const RowsCall<T>& c, int64_t b, int64_t h, int64_t i) {
  const Attention& a = c.a;
  const int64_t first = c.first[c.range_at(b, i)], last = std::max(c.last[c.range_at(b, i)], first);
  Expected row;
  row.out.assign(a.value_width, 0.0);
  const Rule rule = rule_of(a, h, last - first);
  if (rule.fallback) row.flags |= kFallback;
  if (last == first) return row;
  const std::vector<double> scores = scores_of(c, b, h, i, first, last);
  double top = -INFINITY, total = 0;
  for (double score : scores) row.spoiled |= std::isnan(score), top = std::fmax(top, score);
  if (row.spoiled) row.out.assign(a.value_width, NAN);
  if (row.spoiled) return row;
  const std::vector<double> masses = a.denominator == kRoundedKeys ? scores_of(c, b, h, i, first, last, true) : scores;
  for (double score : masses) total += std::exp(score - top);
  const double sink = a.sinks ? std::exp(a.sinks[h] - top) : 0;
  double limit = rule.theta;
  if (a.placement == kMaxRelative) limit += top;
  if (a.placement == kPostSoftmax) limit += top + std::log(total + sink);
  std::vector<double> weights(scores.size(), 0.0);
  double kept = 0, missing = 0;
  row.keys = chosen(a, rule, scores, limit, row);
  for (int32_t j : row.keys) kept += weights[j] = std::exp(scores[j] - top);
  const size_t left = scores.size() - row.keys.size();
  if (!rule.dense && a.compensation != kNone && left) {
    missing = total;
    for (int32_t j : row.keys) missing -= std::exp(masses[j] - top);
    if (!rule.fallback && a.denominator == kOffline) missing = rule.dropped;
    if (!rule.fallback && a.denominator == kExpThreshold) missing = left * std::exp(std::min(limit - top, 0.0));
  }
  const double all = kept + sink + missing;
  if (a.compensation == kSdcVmc && missing > 0)
    for (double& weight : weights)
      if (!a.mean_of_dropped || weight == 0) weight += missing / (a.mean_of_dropped ? left : scores.size());
  for (size_t j = 0; j < scores.size(); ++j)
    if (weights[j] > 0) add_times(row.out, weights[j] / all, c.value.row(b, h / (a.heads / a.groups), first + j));
  return row;
}

// One row of a call against what it should be.
template <typename T>
bool check_row(const RowsCall<T>& c, const Expected& row, int64_t b, int64_t h, int64_t i) {
  const T* out = c.out.row(b, h, i);
  if (row.close) {
    for (int64_t e = 0; e < c.a.value_width; ++e)
      if (std::isnan(number(out[e]))) return wrong("a row is NaN");
    return true;
  }
  if (!same_row<T>(out, row.out, "row")) return false;
  if (row.spoiled || !c.kept.size()) return true;
  const int64_t at = (b * c.a.heads + h) * c.a.queries + i;
  if (c.kept[at] != static_cast<int64_t>(row.keys.size())) return wrong("how much a row keeps");
  return c.flags[at] == row.flags || wrong("the flags of a row");
}

// The rows of a group's heads, and for a single query how many value rows those read.
template <typename T>
bool check_group(const RowsCall<T>& c, int64_t b, int64_t g) {
  const int64_t per_group = c.a.heads / c.a.groups;
  std::vector<bool> read(c.a.keys);
  bool known = c.v_rows.size();
  for (int64_t h = g * per_group; h < (g + 1) * per_group; ++h)
    for (int64_t i = 0; i < c.a.queries; ++i) {
      const Expected row = expected_row(c, b, h, i);
      if (!check_row(c, row, b, h, i)) return false;
      known &= !row.close && !row.spoiled;
      for (int32_t j : row.keys) read[c.first[c.range_at(b, i)] + j] = true;
    }
  if (!known) return true;
  const int64_t rows = std::count(read.begin(), read.end(), true);
  return c.v_rows[b * c.a.groups + g] == rows || wrong("how many value rows are read");
}

// False, and says why, where a call does not give what it should.
template <typename T>
bool check_rows(Random& r, int64_t queries) {
  const RowsCall<T> c(r, random_sizes<T>(r, queries));
  // A second time with keys that are rounded already.
  for (int times = c.codes.size() ? 2 : 1; times > 0; --times) {
    if (queries > 1)
      attend_rows<T>(c.a);
    else if (attend_step<T>(c.a) && !c.codes.size())
      return wrong("rounded keys that are not there are read");
    for (int64_t b = 0; b < c.a.batches; ++b)
      for (int64_t g = 0; g < c.a.groups; ++g)
        if (!check_group(c, b, g)) return false;
  }
  return true;
}
