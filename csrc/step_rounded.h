// The first stage of a decoding step that has rounded keys: which keys some head of a group may keep, and the exact
// scores of those. Every key is read rounded, few in full.
#pragma once

#include <cmath>
#include <memory>
#include <vector>

#include "rounded_keys.h"
#include "step_candidates.h"
#include "step_scores.h"
#include "weigh.h"

constexpr int64_t kChunk = 512;  // keys that a thread reads at a time
static_assert(kChunk % kPanel == 0);

template <typename T>
class FirstStage {
 public:
  // Whether a call has a row to gain from it, and none that needs every exact score. Where the heads of a group keep a
  // fifth of its keys between them (of bfloat16 ones a tenth), it was as fast to read all of them in full.
  static bool serves(const Attention& a, const std::vector<Rule>& rules) {
    if (!a.rounded.codes) return false;
    bool any = false;
    for (const Rule& rule : rules) {
      if (needs_total(a, rule)) return false;
      const int64_t kept = a.heads / a.groups * budget_of(a, rule.length), size = sizeof(T);
      any |= !rule.dense && (a.denominator == kRoundedKeys || 20 * kept <= rule.length * size);
    }
    return any;
  }

  // scores: [rows, room], for what the exact scores reach at least, and then those of listed keys; room for whole
  // chunks. positions: 0, 1, 2 ...
  FirstStage(const Attention& a, const std::vector<Rule>& rules, int64_t room, float* scores, const int32_t* positions)
      : a_(a),
        rules_(rules),
        per_group_(a.heads / a.groups),
        chunks_((a.keys + kChunk - 1) / kChunk),
        room_(room),
        scores_(scores),
        positions_(positions),
        begin_(a.batches),
        heads_(rules.size()),
        queries_(rules.size() * a.width),
        tops_(rules.size() * chunks_),
        sums_(rules.size() * chunks_),
        listed_(a.batches * a.groups * chunks_),
        coarse_(new float[rules.size() * room]),
        list_(new int32_t[a.batches * a.groups * room]) {
    for (int64_t i = 0; i < static_cast<int64_t>(rules.size()); ++i) prepare(i);
    for (int64_t b = 0; b < a.batches; ++b) {
      const int64_t *filled = a.rounded.filled + 2 * b, first = first_of(a, b);
      const bool goes_on = filled[0] <= first && first <= filled[1];
      begin_[b] = goes_on ? filled[1] : first;
    }
  }

  int64_t chunks() const { return chunks_; }

  // Rounds the keys of a chunk that are new; then of all heads the scores of its rounded keys, and what the exact ones
  // reach at least.
  void score(int64_t group_row, int64_t chunk) {
    const Span s = span(group_row / a_.groups, chunk);
    const int64_t row = first_row(group_row);
    for (int64_t h = 0; h < per_group_; ++h)
      tops_[(row + h) * chunks_ + chunk] = -simd::kInfinity, sums_[(row + h) * chunks_ + chunk] = {};
    if (s.first >= s.last) return;
    RoundedGroup keys(a_, group_row);
    for (int64_t key = std::max(s.first, begin_[s.batch]); key < s.last; ++key)
      keys.put(key, row_of<T>(a_.key, s.batch, group_row % a_.groups, key));
    float* coarse = coarse_of(row) + chunk * kChunk;
    const float* queries = queries_.data() + row * a_.width;
    for (int64_t key = s.base; key < s.last; key += kPanel)
      code_products(keys.panel_at(key), queries, per_group_, a_.width, coarse + (key - s.base), room_);
    for (int64_t h = 0; h < per_group_; ++h) bound(row + h, chunk, s, keys);
  }

  // What the bound of a key has to reach so that a row may keep the key. maxima: room for limit_above.
  void limit(int64_t row, float* maxima) {
    Head& head = heads_[row];
    const Rule& rule = rules_[row];
    if (rule.dense || !rule.length) return;
    float top = -simd::kInfinity;
    for (int64_t c = 0; c < chunks_; ++c) {
      const ScoreSums& sums = sums_[row * chunks_ + c];
      top = std::max(top, tops_[row * chunks_ + c]);
      head.sums.highest = std::max(head.sums.highest, sums.highest);
      head.spoiled |= sums.spoiled;
    }
    for (int64_t c = 0; c < chunks_; ++c) {
      const ScoreSums& sums = sums_[row * chunks_ + c];
      if (sums.total > 0) head.sums.total += sums.total * std::exp(sums.highest - head.sums.highest);
    }
    // The k highest are never excluded, and so many of a row that its threshold leaves too few.
    const int64_t least = std::min(rule.k ? rule.k : a_.min_keep, rule.length);
    const float* lower = scores_of(row) + first_of(a_, row / a_.heads) % kPanel;
    float limit = least == 1 ? top : kth_highest(lower, rule.length, least, maxima);
    if (!rule.k) limit = std::min(limit, limit_of(a_, rule, row % a_.heads, reference(row, {top, 0})));
    // Less what rounding may do where bias and cap are applied.
    head.limit = limit - 1e-6f * (std::fabs(limit) + a_.softcap);
  }

  // Lists the keys of a chunk that some head may keep, and computes the exact scores of those.
  void look(int64_t group_row, int64_t chunk) {
    const int64_t batch = group_row / a_.groups, group = group_row % a_.groups;
    int32_t* list = list_.get() + group_row * room_ + chunk * kChunk;
    const int count = listed_[group_row * chunks_ + chunk] = list_chunk(group_row, chunk, list);
    for (int i = 0; i < count; i += simd::kLanes) {
      const T* rows[simd::kLanes];
      const auto row_at = [&](int j) { return row_of<T>(a_.key, batch, group, list[std::min(j, count - 1)]); };
      for (int j = 0; j < simd::kLanes; ++j) {
        rows[j] = row_at(i + j);
        const char* ahead = reinterpret_cast<const char*>(row_at(i + j + kAhead));
        for (size_t at = 0; at < a_.width * sizeof(T); at += 64) __builtin_prefetch(ahead + at);
      }
      for (int64_t h = 0; h < per_group_; ++h) {
        const int64_t head = group * per_group_ + h;
        simd::Vec sums = simd::mul(products(rows, row_of<T>(a_.query, batch, head, 0), a_.width), simd::set(a_.scale));
        if (a_.bias.data) sums = simd::add(sums, listed_bias(batch, head, list + i, count - i));
        simd::store(scores_of(first_row(group_row) + h) + chunk * kChunk + i, capped(sums, a_.softcap));
      }
    }
  }

  // Puts the exact scores of a row, and their keys, one after the other; returns how many.
  int join(int64_t row, int32_t* keys) const {
    const int64_t group_row = row / per_group_;
    float* scores = scores_of(row);
    int count = 0;
    for (int64_t c = 0; c < chunks_; ++c) {
      const int more = listed_[group_row * chunks_ + c];
      std::memmove(scores + count, scores + c * kChunk, sizeof(float) * more);
      std::memcpy(keys + count, list_.get() + group_row * room_ + c * kChunk, sizeof(int32_t) * more);
      count += more;
    }
    return count;
  }

  // What the limit of a row follows: for post-softmax the scores of rounded keys, otherwise the exact ones.
  RowSums reference(int64_t row, RowSums exact) const {
    return a_.placement == kPostSoftmax ? heads_[row].sums : exact;
  }
  bool spoiled(int64_t row) const { return heads_[row].spoiled; }

  // The sum of exp(score of the rounded key - highest) over the keys that a row drops.
  float dropped(int64_t row, const int32_t* keys, int count, float highest) const {
    const RowSums& sums = heads_[row].sums;
    const float* coarse = coarse_of(row) - span(row / a_.heads, 0).base;
    float kept = 0;
    for (int i = 0; i < count; i += simd::kLanes) {
      float some[simd::kLanes];
      for (int j = 0; j < simd::kLanes; ++j) some[j] = i + j < count ? coarse[keys[i + j]] : -simd::kInfinity;
      kept += simd::sum(simd::exp(simd::sub(simd::load(some), simd::set(sums.highest))));
    }
    return std::max(sums.total - kept, 0.0f) * std::exp(sums.highest - (highest > -simd::kInfinity ? highest : 0.0f));
  }

  // How many keys of a group were read in full.
  int rows_read(int64_t group_row) const {
    const int64_t batch = group_row / a_.groups;
    int64_t count = std::max<int64_t>(last_of(a_, batch) - begin_[batch], 0);
    for (int64_t c = 0; c < chunks_; ++c) count += listed_[group_row * chunks_ + c];
    return static_cast<int>(std::min(count, last_of(a_, batch) - first_of(a_, batch)));
  }

  // Notes what is rounded by now.
  void finish() const {
    for (int64_t b = 0; b < a_.batches; ++b) {
      int64_t* filled = a_.rounded.filled + 2 * b;
      if (begin_[b] != filled[1]) filled[0] = begin_[b];
      filled[1] = std::max(begin_[b], last_of(a_, b));
    }
  }

 private:
  static constexpr int kAhead = 16;  // listed keys that are fetched before they are needed

  struct Head {
    float norm = 0;  // of the query, times the scale
    float limit = -simd::kInfinity;
    bool totals = false, spoiled = false;
    RowSums sums{-simd::kInfinity, 0};  // of the rounded keys
  };

  // A chunk begins at `base`, which is that of a panel; its keys that are seen are first <= key < last.
  struct Span {
    int64_t batch, base, first, last;

    simd::Bits lanes(int64_t key) const {
      const simd::Bits before = first > key ? simd::first_bits(static_cast<int>(first - key)) : 0;
      return simd::first_bits(static_cast<int>(last - key)) & ~before;
    }
  };

  Span span(int64_t batch, int64_t chunk) const {
    const int64_t base = first_of(a_, batch) / kPanel * kPanel + chunk * kChunk;
    return {batch, base, std::max(base, first_of(a_, batch)), std::min(base + kChunk, last_of(a_, batch))};
  }
  int64_t first_row(int64_t group_row) const { return group_row * per_group_; }
  // Scores of a row begin at the base of its first chunk.
  float* coarse_of(int64_t row) const { return coarse_.get() + row * room_; }
  float* scores_of(int64_t row) const { return scores_ + row * room_; }

  void prepare(int64_t row) {
    const T* query = row_of<T>(a_.query, row / a_.heads, row % a_.heads, 0);
    float* to = queries_.data() + row * a_.width;
    float squares = 0;
    for (int64_t d = 0; d < a_.width; ++d) {
      to[d] = Stored<T>::get(query + d) * a_.scale;
      squares += to[d] * to[d];
    }
    heads_[row].norm = std::sqrt(squares) * 1.0001f;
    heads_[row].totals = needs_rounded_total(a_, rules_[row]);
  }

  // Products become scores, and bounds of the exact ones.
  void bound(int64_t row, int64_t chunk, const Span& s, const RoundedGroup& keys) {
    const simd::Vec norm = simd::set(heads_[row].norm), lowest = simd::set(-simd::kInfinity);
    float *coarse = coarse_of(row) + chunk * kChunk, *lower = scores_of(row) + chunk * kChunk;
    simd::Vec top = lowest;
    for (int64_t key = s.base; key < s.last; key += simd::kLanes, coarse += simd::kLanes, lower += simd::kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(simd::kLanes, s.last - key));
      const simd::Bits seen = s.lanes(key);
      simd::Vec score = simd::mul(simd::load(coarse), simd::load(keys.steps + key));
      score = simd::choose(seen, finished(a_, score, s.batch, row % a_.heads, key, count), lowest);
      const simd::Vec least = simd::sub(score, simd::mul(norm, simd::load(keys.errors + key)));
      const simd::Vec known = simd::choose(seen & simd::at_least(least, lowest), least, lowest);  // a number, that is
      simd::store(coarse, score);
      simd::store(lower, known);
      top = simd::higher(known, top);
    }
    tops_[row * chunks_ + chunk] = simd::highest(top);
    if (heads_[row].totals)
      sums_[row * chunks_ + chunk] = sums_of(coarse_of(row) + chunk * kChunk, static_cast<int>(s.last - s.base), true);
  }

  static float kth_highest(const float* lower, int64_t length, int64_t k, float* maxima) {
    const float quick = limit_above(lower, static_cast<int>(length), k, maxima);
    if (quick > -simd::kInfinity) return quick;
    return limit_for(lower, static_cast<int>(length), static_cast<int>(k)).at;
  }

  int list_chunk(int64_t group_row, int64_t chunk, int32_t* list) const {
    const Span s = span(group_row / a_.groups, chunk);
    const int64_t row = first_row(group_row);
    const float* errors = RoundedGroup(a_, group_row).errors;
    int count = 0;
    for (int64_t key = s.base; key < s.last; key += simd::kLanes) {
      simd::Bits any = 0;
      for (int64_t h = 0; h < per_group_; ++h) {
        const Head& head = heads_[row + h];
        const simd::Vec coarse = simd::load(coarse_of(row + h) + chunk * kChunk + (key - s.base));
        const simd::Vec most = simd::fma(simd::set(head.norm), simd::load(errors + key), coarse);
        any |= ~simd::above(simd::set(head.limit), most);  // also where a bound is no number
      }
      any &= s.lanes(key);
      if (!any) continue;
      simd::compress(list + count, positions_ + key, any);
      count += simd::count(any);
    }
    return count;
  }

  simd::Vec listed_bias(int64_t batch, int64_t head, const int32_t* keys, int count) const {
    const float* bias = row_of<float>(a_.bias, batch, head, 0);
    float some[simd::kLanes];
    for (int j = 0; j < simd::kLanes; ++j) some[j] = bias[keys[std::min(j, count - 1)]];
    return simd::load(some);
  }

  const Attention& a_;
  const std::vector<Rule>& rules_;
  const int64_t per_group_, chunks_, room_;
  float* const scores_;
  const int32_t* const positions_;
  std::vector<int64_t> begin_;  // from here on keys are new
  std::vector<Head> heads_;
  std::vector<float> queries_, tops_;
  std::vector<ScoreSums> sums_;
  std::vector<int> listed_;
  std::unique_ptr<float[]> coarse_;
  std::unique_ptr<int32_t[]> list_;
};
