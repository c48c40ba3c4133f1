// Attention of many queries: top-k and top-theta in one streaming pass over the keys, memory linear in length.
//
// A block of rows meets span after span of keys. Each row holds candidates and a limit below which nothing can be kept
// any more: for top-k the k-th highest so far; for top-theta the threshold plus the row's running maximum or
// log-sum-exp. Both only grow, so the candidates are a superset that one cut at the end makes exact. Then the
// kept value rows are gathered, key range by key range for all rows of the block, so that they are shared in the cache.
#pragma once

#include <memory>
#include <vector>

#include "candidates.h"
#include "parallel.h"
#include "product.h"
#include "weigh.h"

// Value rows are added up in runs of so many, from which the sum over any range is quick to make. Sums are never
// subtracted: a row that sees no NaN must not meet one.
constexpr int64_t kRun = 32;

// Keys that meet a block at a time: their scores and rows stay in the first-level cache, together with the queries.
constexpr int kTileKeys = 96;

// Scores of so many keys are made before candidates are taken from them: the more, the closer the limits are to what
// they will be. With a block's rows they take some 400 kB of the second-level cache.
constexpr int kSpanKeys = 32 * kTileKeys;

// Keys whose candidates are listed at a time.
constexpr int kListed = 64;

// What a thread works with. The large parts are left uninitialised, so that only pages that are used are ever touched.
struct Scratch {
  std::vector<float> queries, keys, sums, plain, mean;
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
        list(kListed * kBlockRows + 4),
        room(room),
        scores(new float[std::min<int64_t>(a.keys, kSpanKeys) * kBlockRows]),
        maxima(new float[(std::min<int64_t>(a.keys, kSpanKeys) / 2 + 1) * kBlockRows]),
        values(new float[kBlockRows * room]),
        positions(new int32_t[kBlockRows * room]) {}
};

template <typename T>
class Block {
 public:
  // Row r of a block is query (start + r) / per_group of head group * per_group + (start + r) % per_group.
  Block(const Attention& a, Scratch& s, const float* runs, int64_t batch, int64_t group, int64_t start)
      : a_(a), s_(s), runs_(runs), batch_(batch), group_(group), start_(start) {
    per_group_ = a.heads / a.groups;
    rows_ = static_cast<int>(std::min<int64_t>(kBlockRows, a.queries * per_group_ - start));
  }

  void run() {
    read_rows();
    stream();
    cut();
    if (rescue()) cut();
    weigh();
    write();
  }

 private:
  int64_t query_of(int r) const { return (start_ + r) / per_group_; }
  int64_t head_of(int r) const { return group_ * per_group_ + (start_ + r) % per_group_; }
  int64_t index_of(int r) const { return (batch_ * a_.heads + head_of(r)) * a_.queries + query_of(r); }
  float* values_of(int r) const { return s_.values.get() + r * s_.room; }
  int32_t* positions_of(int r) const { return s_.positions.get() + r * s_.room; }

  void read_rows() {
    low_ = a_.keys, high_ = 0, common_low_ = 0, common_high_ = a_.keys;
    totals_ = maxima_ = false;
    for (int r = 0; r < kBlockRows; ++r) {
      top_[r] = -simd::kInfinity, total_[r] = 0, spoiled_[r] = false, counts_[r] = 0;
      floor_[r] = simd::kInfinity, theta_[r] = -simd::kInfinity;  // takes nothing
      saved_[r] = false;
      first_[r] = 0, last_[r] = static_cast<float>(a_.keys);
      flags_[r] = 0;
      if (r >= rows_) {
        for (int64_t d = 0; d < a_.width; ++d) s_.queries[d * kBlockRows + r] = 0;
        continue;
      }
      const int64_t at = batch_ * a_.range_batch + query_of(r);
      const int64_t first = a_.first[at], last = std::max(a_.last[at], first);
      rules_[r] = rule_of(a_, head_of(r), last - first);
      if (rules_[r].fallback) flags_[r] |= kFallback;
      open(r);
      first_[r] = static_cast<float>(first), last_[r] = static_cast<float>(last);
      common_low_ = std::max(common_low_, first), common_high_ = std::min(common_high_, last);
      if (last > first) low_ = std::min(low_, first), high_ = std::max(high_, last);
      totals_ |= needs_total(a_, rules_[r]);
      const T* query = row_of<T>(a_.query, batch_, head_of(r), query_of(r));
      for (int64_t d = 0; d < a_.width; ++d) s_.queries[d * kBlockRows + r] = Stored<T>::get(query + d) * a_.scale;
    }
    maxima_ = totals_ || a_.placement == kMaxRelative || a_.compensation != kNone;
  }

  // A row takes what is above both its floor, which rises as candidates are thinned out, and its threshold, which what
  // set_limits knows of the row is added to.
  void open(int r) {
    const Rule& rule = rules_[r];
    counts_[r] = 0;
    floor_[r] = -simd::kInfinity;
    theta_[r] = rule.dense || rule.k ? -simd::kInfinity : rule.theta;
    full_[r] = rule.k ? std::min<int64_t>(most_candidates(rule.k), s_.room - kSlack) : s_.room + 1;  // never full
  }

  void stream() {
    for (int64_t key = low_; key < high_; key += kSpanKeys) {
      const int span = static_cast<int>(std::min<int64_t>(kSpanKeys, high_ - key));
      for (int at = 0; at < span; at += kTileKeys) {
        const int count = std::min(kTileKeys, span - at);
        float* scores = s_.scores.get() + at * kBlockRows;
        score(key + at, count, scores);
        if (key + at < common_low_ || key + at + count > common_high_) hide(key + at, count, scores);
        if (maxima_) follow(count, scores);
      }
      raise_floors(span);
      collect(key, span);
    }
  }

  void score(int64_t key, int count, float* scores) {
    const T* keys = row_of<T>(a_.key, batch_, group_, key);
    if constexpr (sizeof(T) == sizeof(float)) {
      multiply_keys(keys, a_.key.row, count, scores);
    } else {
      for (int j = 0; j < count; ++j)
        for (int64_t d = 0; d < a_.width; ++d) s_.keys[j * a_.width + d] = from_bf16(keys[j * a_.key.row + d]);
      multiply_keys(s_.keys.data(), a_.width, count, scores);
    }
    if (a_.bias.data) add_bias(key, count, scores);
    if (a_.softcap > 0) cap(count, scores);
  }

  void multiply_keys(const float* keys, int64_t stride, int count, float* scores) const {
    multiply(keys, stride, count, s_.queries.data(), kBlockRows, a_.width, kBlockRows,
             [&](int64_t j, int64_t row, simd::Vec sum) { simd::store(scores + j * kBlockRows + row, sum); });
  }

  void add_bias(int64_t key, int count, float* scores) const {
    for (int r = 0; r < rows_; ++r) {
      const float* bias = row_of<float>(a_.bias, batch_, head_of(r), query_of(r)) + key;
      for (int j = 0; j < count; ++j) scores[j * kBlockRows + r] += bias[j];
    }
  }

  void cap(int count, float* scores) const {
    for (int i = 0; i < count * kBlockRows; i += simd::kLanes)
      simd::store(scores + i, capped(simd::load(scores + i), a_.softcap));
  }

  void hide(int64_t key, int count, float* scores) const {
    for (int j = 0; j < count; ++j) {
      const simd::Vec position = simd::set(static_cast<float>(key + j));
      for (int v = 0; v < kBlockVectors; ++v) {
        const int at = v * simd::kLanes;
        float* score = scores + j * kBlockRows + at;
        const simd::Bits seen = simd::at_least(position, simd::load(first_ + at)) &
                                simd::above(simd::load(last_ + at), position);
        simd::store(score, simd::choose(seen, simd::load(score), simd::set(-simd::kInfinity)));
      }
    }
  }

  // Maxima and, where a row needs it, the sum of exp(score - maximum).
  void follow(int count, const float* scores) {
    for (int v = 0; v < kBlockVectors; ++v) {
      const int at = v * simd::kLanes;
      const simd::Vec before = simd::load(top_ + at);
      simd::Vec top = before;
      for (int j = 0; j < count; ++j) top = simd::higher(simd::load(scores + j * kBlockRows + at), top);
      simd::store(top_ + at, top);
      if (!totals_) continue;
      // A row that has seen nothing yet: any finite origin will do.
      const simd::Vec origin = simd::choose(simd::above(top, simd::set(-simd::kInfinity)), top, simd::zero());
      simd::Vec total = simd::mul(simd::load(total_ + at), simd::exp(simd::sub(before, origin)));
      for (int j = 0; j < count; ++j)
        total = simd::add(total, simd::exp(simd::sub(simd::load(scores + j * kBlockRows + at), origin)));
      simd::store(total_ + at, total);
    }
  }

  // The k-th highest of a row's candidates, or of the maxima of groups of new scores: its k highest all reach either.
  void raise_floors(int span) {
    int64_t most = 0;
    for (int r = 0; r < rows_; ++r)
      if (floor_[r] < simd::kInfinity) most = std::max(most, rules_[r].k);
    const int size = most ? static_cast<int>(span / (2 * most)) : 0;
    const int groups = size > 1 ? span / size : 0;
    bool fresh = false;
    for (int r = 0; r < rows_; ++r) {
      const int k = static_cast<int>(rules_[r].k);
      if (!k || floor_[r] == simd::kInfinity) continue;
      if (counts_[r] > k) floor_[r] = keep_highest(values_of(r), positions_of(r), counts_[r], k);
      fresh |= counts_[r] < k;
    }
    if (!groups || !fresh) return;
    find_maxima(size, groups);
    alignas(64) float limits[kBlockRows];
    for (int v = 0; v < kBlockVectors; ++v) limits_below(groups, v * simd::kLanes, limits + v * simd::kLanes);
    for (int r = 0; r < rows_; ++r)
      if (rules_[r].k && floor_[r] < simd::kInfinity && counts_[r] < rules_[r].k) floor_[r] = limits[r];
  }

  // For the rows of one vector a limit that k of their maxima exceed, by bisection; -infinity where fewer are finite.
  void limits_below(int groups, int at, float* limits) const {
    const float* maxima = s_.maxima.get() + at;
    alignas(64) float wanted[simd::kLanes];
    for (int i = 0; i < simd::kLanes; ++i) wanted[i] = at + i < rows_ ? static_cast<float>(rules_[at + i].k) : 0.0f;
    const simd::Vec k = simd::load(wanted), nothing = simd::set(-simd::kInfinity);
    simd::Vec low = simd::set(simd::kInfinity), high = nothing;
    for (int g = 0; g < groups; ++g) {
      const simd::Vec v = simd::load(maxima + g * kBlockRows);
      low = simd::choose(simd::above(v, nothing), simd::lower(v, low), low);
      high = simd::higher(v, high);
    }
    low = simd::sub(low, simd::set(1.0f));  // every finite one exceeds it
    simd::Vec best = nothing;
    for (int step = 0; step < 14; ++step) {
      const simd::Vec middle = step ? simd::mul(simd::add(low, high), simd::set(0.5f)) : low;
      simd::Vec found = simd::zero();
      for (int g = 0; g < groups; ++g)
        found = simd::add(found, simd::choose(simd::above(simd::load(maxima + g * kBlockRows), middle), simd::set(1.0f),
                                              simd::zero()));
      const simd::Bits enough = simd::at_least(found, k);
      best = simd::choose(enough, middle, best);
      low = simd::choose(enough, middle, low);
      high = simd::choose(enough, high, middle);
    }
    simd::store(limits, best);
  }

  void find_maxima(int size, int groups) {
    const float* scores = s_.scores.get();
    for (int g = 0; g < groups; ++g)
      for (int v = 0; v < kBlockVectors; ++v) {
        const float* score = scores + g * size * kBlockRows + v * simd::kLanes;
        simd::Vec top = simd::load(score);
        for (int j = 1; j < size; ++j) top = simd::higher(simd::load(score + j * kBlockRows), top);
        simd::store(s_.maxima.get() + g * kBlockRows + v * simd::kLanes, top);
      }
  }

  // What a row's threshold is added to; while scores still stream by, at most what it will be in the end.
  void set_limits(float* limits) const {
    for (int r = 0; r < kBlockRows; ++r) {
      float base = 0;
      if (a_.placement == kMaxRelative) base = top_[r];
      if (a_.placement == kPostSoftmax) base = top_[r] + log_below(total_[r]);
      const float bound = theta_[r] + base;
      limits[r] = bound > floor_[r] ? bound : floor_[r];
    }
  }

  // A lower bound of log(x): log2 is concave, so between powers of two the straight line lies below it.
  static float log_below(float x) {
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<float>(bits - 0x3f800000) * (0.693147f / 8388608.0f) - 1e-5f;
  }

  // Takes what is above the limits. Where that is comes first, as a list, because to ask of each word of bits whether it
  // has one more costs a mispredicted branch.
  void collect(int64_t key, int count) {
    alignas(64) float limits[kBlockRows];
    set_limits(limits);
    for (int from = 0; from < count; from += kListed) {
      const int found = list(s_.scores.get(), limits, from, std::min(from + kListed, count));
      if (take(found, static_cast<int32_t>(key))) set_limits(limits);
    }
  }

  // Where scores of the keys from..to are above the limits, as key * kBlockRows + row; returns how many.
  int list(const float* scores, const float* limits, int from, int to) {
    simd::Vec limit[kBlockVectors];
    for (int v = 0; v < kBlockVectors; ++v) limit[v] = simd::load(limits + v * simd::kLanes);
    int32_t* list = s_.list.data();
    int found = 0;
    for (int j = from; j < to; ++j) {
      uint64_t bits = 0;
      for (int v = 0; v < kBlockVectors; ++v)
        bits |= static_cast<uint64_t>(
                    simd::not_at_most(simd::load(scores + j * kBlockRows + v * simd::kLanes), limit[v]))
                << v * simd::kLanes;
      const int all = __builtin_popcountll(bits);
      int next = found;
      do {  // four at a time, of which those past the last are overwritten
        for (int i = 0; i < 4; ++i) {
          list[next++] = j * kBlockRows + __builtin_ctzll(bits | 1ull << 63);
          bits &= bits - 1;
        }
      } while (next - found < all);
      found += all;
    }
    return found;
  }

  // Adds what was listed to the candidates; key: that of the first score. True if that moved a limit.
  bool take(int found, int32_t key) {
    const float* scores = s_.scores.get();
    const int32_t* list = s_.list.data();
    float* values = s_.values.get();
    int32_t* positions = s_.positions.get();
    const int64_t room = s_.room;
    bool moved = false;
    for (int i = 0; i < found; ++i) {
      const int at = list[i], r = at % kBlockRows;
      const float score = scores[at];
      if (!(score < simd::kInfinity)) {
        spoiled_[r] = true;  // softmax makes NaN of the row
        continue;
      }
      const int n = counts_[r];
      values[r * room + n] = score;
      positions[r * room + n] = key + at / kBlockRows;
      counts_[r] = n + 1;
      if (n + 1 < full_[r]) continue;
      floor_[r] = thin_out(values_of(r), positions_of(r), counts_[r], static_cast<int>(rules_[r].k));
      moved = true;
    }
    return moved;
  }

  // Exactly what is kept.
  void cut() {
    for (int r = 0; r < rows_; ++r) {
      const Rule& rule = rules_[r];
      if (rule.dense) continue;
      if (rule.k) {
        keep_highest(values_of(r), positions_of(r), counts_[r], static_cast<int>(rule.k));
      } else {
        counts_[r] = keep_above(values_of(r), positions_of(r), counts_[r], limit_of(r));
      }
    }
  }

  float limit_of(int r) const { return ::limit_of(a_, rules_[r], head_of(r), {top_[r], total_[r]}); }

  // Rows with fewer than min_keep candidates go through the keys again, for their min_keep highest.
  bool rescue() {
    bool any = false;
    for (int r = 0; r < rows_; ++r) {
      const Rule& rule = rules_[r];
      saved_[r] = !rule.dense && !rule.k && counts_[r] < std::min(a_.min_keep, rule.length);
      any |= saved_[r];
    }
    if (!any) return false;
    for (int r = 0; r < rows_; ++r) {
      floor_[r] = simd::kInfinity;
      if (!saved_[r]) continue;
      flags_[r] |= kRescued;
      rules_[r].k = a_.min_keep;
      open(r);
    }
    const bool totals = totals_, maxima = maxima_;
    totals_ = maxima_ = false;  // they are known
    stream();
    totals_ = totals, maxima_ = maxima;
    return true;
  }

  void weigh() {
    for (int r = 0; r < rows_; ++r) {
      float* scores = values_of(r);
      float top = top_[r];
      if (!maxima_) top = counts_[r] ? range_of(scores, counts_[r]).high : -simd::kInfinity;
      missing_[r] = to_weights(a_, rules_[r], head_of(r), scores, counts_[r], {top, total_[r]}, limit_of(r));
      if (a_.kept) a_.kept[index_of(r)] = counts_[r];
      if (a_.flags) a_.flags[index_of(r)] = flags_[r];
      kept_[r] = counts_[r];
      // A weight that underflowed hides even a value that is NaN.
      counts_[r] = keep_above(scores, positions_of(r), counts_[r], 0.0f);
    }
  }

  void write() {
    std::fill_n(s_.sums.data(), rows_ * a_.value_width, 0.0f);
    const bool plain = a_.mean_of_dropped;
    if (plain) std::fill_n(s_.plain.data(), rows_ * a_.value_width, 0.0f);
    gather_block(plain);
    int64_t mean_first = -1, mean_last = -1;
    for (int r = 0; r < rows_; ++r) {
      float* out = s_.sums.data() + r * a_.value_width;
      if (missing_[r] > 0) add_mean(r, out, mean_first, mean_last);
      if (spoiled_[r]) std::fill_n(out, a_.value_width, std::numeric_limits<float>::quiet_NaN());
      write_row<T>(a_.out, batch_, head_of(r), query_of(r), out, a_.value_width);
    }
  }

  void gather_block(bool plain) {
    int64_t kept = 1;
    for (int r = 0; r < rows_; ++r) kept = std::max<int64_t>(kept, counts_[r]), next_[r] = 0;
    const int64_t span = std::max<int64_t>(high_ - low_, 1);
    const int64_t step = std::max<int64_t>(128, 16 * span / kept);  // some candidates of each row in every step
    const T* values = row_of<T>(a_.value, batch_, group_, 0);
    for (int64_t stop = low_ + step; stop < high_ + step; stop += step) {
      for (int r = 0; r < rows_; ++r) {
        const int32_t* keys = positions_of(r);
        const int from = next_[r];
        int to = from;
        if (stop >= high_)
          to = counts_[r];
        else
          to = static_cast<int>(std::lower_bound(keys + from, keys + counts_[r], static_cast<int32_t>(stop)) - keys);
        if (to == from) continue;
        gather<false>(s_.sums.data() + r * a_.value_width, plain ? s_.plain.data() + r * a_.value_width : nullptr,
               values_of(r) + from, keys + from, to - from, values, a_.value.row, a_.value_width);
        next_[r] = to;
      }
    }
  }

  // out += missing mass * mean of value rows. mean_first, mean_last: the range that s_.mean sums at the moment.
  void add_mean(int r, float* out, int64_t& mean_first, int64_t& mean_last) {
    const int64_t first = static_cast<int64_t>(first_[r]), last = static_cast<int64_t>(last_[r]);
    float* mean = s_.mean.data();
    const T* values = row_of<T>(a_.value, batch_, group_, 0);
    if (first == mean_first && last >= mean_last && last - mean_last <= kRun) {
      add_rows(mean, values, a_.value.row, mean_last, last, a_.value_width);
    } else {
      std::fill_n(mean, a_.value_width, 0.0f);
      int64_t at = std::min((first + kRun - 1) / kRun * kRun, last);
      add_rows(mean, values, a_.value.row, first, at, a_.value_width);
      for (; at + kRun <= last; at += kRun) add_rows(mean, runs_ + at / kRun * a_.value_width, 0, 0, 1, a_.value_width);
      add_rows(mean, values, a_.value.row, at, last, a_.value_width);
    }
    mean_first = first, mean_last = last;
    const float* plain = a_.mean_of_dropped ? s_.plain.data() + r * a_.value_width : nullptr;
    const int64_t members = last - first - (plain ? kept_[r] : 0);
    const float factor = missing_[r] / static_cast<float>(std::max<int64_t>(members, 1));
    for (int64_t e = 0; e < a_.value_width; ++e) out[e] += factor * (plain ? mean[e] - plain[e] : mean[e]);
  }

  const Attention& a_;
  Scratch& s_;
  const float* runs_;
  const int64_t batch_, group_, start_;
  int64_t per_group_;
  int rows_;
  int64_t low_, high_;                // keys that some row sees
  int64_t common_low_, common_high_;  // keys that all rows see
  bool totals_, maxima_;
  Rule rules_[kBlockRows];
  alignas(64) float top_[kBlockRows], total_[kBlockRows], floor_[kBlockRows], theta_[kBlockRows];
  alignas(64) float first_[kBlockRows], last_[kBlockRows];
  float missing_[kBlockRows];
  int counts_[kBlockRows], kept_[kBlockRows], next_[kBlockRows];
  int64_t full_[kBlockRows];
  bool spoiled_[kBlockRows], saved_[kBlockRows];
  uint8_t flags_[kBlockRows];
};

// The sums of all full runs of value rows: [batches, groups, keys / kRun, value_width].
template <typename T>
std::vector<float> sum_runs(const Attention& a) {
  const int64_t runs = a.keys / kRun, all = a.batches * a.groups * runs;
  std::vector<float> sums(all * a.value_width);
#pragma omp parallel for num_threads(a.threads) schedule(static)
  for (int64_t i = 0; i < all; ++i) {
    const int64_t run = i % runs, group = i / runs % a.groups, batch = i / runs / a.groups;
    add_rows(sums.data() + i * a.value_width, row_of<T>(a.value, batch, group, run * kRun), a.value.row, 0, kRun,
             a.value_width);
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
  std::vector<float> runs;
  if (a.compensation == kSdcVmc) runs = sum_runs<T>(a);
  std::vector<Scratch> scratch;
  for (int thread = 0; thread < a.threads; ++thread) scratch.emplace_back(a, room);
  for_each_item(a.batches * a.groups * blocks, a.threads, [&](int64_t i) {
    // The last blocks first: under a causal mask they are the longest.
    const int64_t block = blocks - 1 - i % blocks, group = i / blocks % a.groups, batch = i / blocks / a.groups;
    const float* of_group = runs.data() + (batch * a.groups + group) * (a.keys / kRun) * a.value_width;
    Block<T>(a, scratch[thread_number()], of_group, batch, group, block * kBlockRows).run();
  });
}
