// A decoding step whose scores come in stages: a part of every key for a bound, the rest of those that may be kept.
#pragma once

#include <array>
#include <memory>
#include <numeric>

#include "../../csrc/weigh.h"
#include "layer.h"

constexpr int kFew = 16;        // listed rows that are fetched before they are needed
constexpr float kRounding = 1.0001f;  // what bounds grow by
constexpr float kMargin = 0.05f;      // how much the logarithm of a denominator may turn out lower
constexpr int64_t kNear = 128;  // keys whose value rows the heads of a group share in the first-level cache

inline simd::Vec load_int8(const int8_t* p) {
#if defined(__AVX512F__)
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  float x[kLanes];
  for (int i = 0; i < kLanes; ++i) x[i] = p[i];
  return simd::load(x);
#endif
}

// The products of kLanes rows with one vector.
template <int kWidth>
simd::Vec products(const float* const* rows, const float* vector) {
  simd::Vec sums[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if constexpr (kWidth < kLanes) {
      sums[i] = simd::mul(simd::load_first(vector, kWidth), simd::load_first(rows[i], kWidth));
    } else {
      sums[i] = simd::mul(simd::load(vector), simd::load(rows[i]));
      for (int d = kLanes; d < kWidth; d += kLanes)
        sums[i] = simd::fma(simd::load(vector + d), simd::load(rows[i] + d), sums[i]);
    }
  }
  return simd::sums(sums);
}

// A step of one layer; rules, weights and value rows as in Step.
template <int kWidth, int kHeads>
class Staged {
  using Data = Layer<kWidth>;
  static constexpr int kLead = Data::kLead, kLast = Data::kLast;

 public:
  Staged(Kind kind, const Attention& a, const Sizes& sizes, Data& layer, int64_t query)
      : kind_(kind), a_(a), s_(sizes), layer_(layer), query_(query), length_(sizes.keys - sizes.queries + 1 + query),
        positions_(sizes.room()), list_(new int32_t[sizes.room()]), floats_(new float[4 * kHeads * sizes.room()]),
        keys_(new int32_t[kHeads * sizes.room()]) {
    std::iota(positions_.begin(), positions_.end(), 0);
  }

  void run(float* out) {
    for (int64_t g = 0; g < a_.groups; ++g) {
      layer_.put(kind_, s_, g, length_ - 1);
      for (int h = 0; h < kHeads; ++h) prepare(g, h);
      kind_ == kMapped ? score_leads(g) : score_codes(g);
      for (int h = 0; h < kHeads; ++h) look(g, h);
      int count = list(g);
      if (kind_ == kMapped) count = refine(g, count);
      finish(g, count);
      for (int h = 0; h < kHeads; ++h) keep(g, h, count), weigh(g, h, out + (g * kHeads + h) * kWidth);
      gather_all_heads(g, out);
      for (int h = 0; h < kHeads; ++h) add_mean(g, h, out + (g * kHeads + h) * kWidth);
    }
  }

 private:
  struct Head {
    float vector[kWidth];       // of the query, mapped or not
    float constant;             // what every score begins with
    float rest, last_rest;      // norms of what is not read yet
    float limit, missing;
    Rule rule;
    RowSums sums;
    int count;
  };

  float* coarse(int h) { return floats_.get() + h * s_.room(); }
  float* refined(int h) { return floats_.get() + (kHeads + h) * s_.room(); }
  float* scores(int h) { return floats_.get() + (2 * kHeads + h) * s_.room(); }
  int32_t* keys(int h) { return keys_.get() + h * s_.room(); }
  int64_t row(int64_t g, int64_t at) const { return g * s_.room() + at; }

  void prepare(int64_t g, int h) {
    Head& head = heads_[h];
    const float* q = row_of<float>(a_.query, 0, g * kHeads + h, 0);
    head.rule = rule_of(a_, g * kHeads + h, length_);
    head.constant = 0, head.count = 0;
    if (kind_ == kRounded) {
      std::copy_n(q, kWidth, head.vector);
      head.rest = norm(q, kWidth);
      return;
    }
    std::fill_n(head.vector, kWidth, 0.0f);
    for (int d = 0; d < kWidth; ++d) {
      head.constant += q[d] * layer_.mean[g * kWidth + d];
      const float* axis = layer_.to_query.data() + (g * kWidth + d) * kWidth;
      for (int e = 0; e < kWidth; ++e) head.vector[e] += q[d] * axis[e];
    }
    head.rest = norm(head.vector + kLead, kWidth - kLead), head.last_rest = norm(head.vector + 2 * kLead, kLast);
  }

  void score_leads(int64_t g) {
    for (int64_t at = 0; at < length_; at += kLanes) {
      const float* panel = layer_.lead.data() + row(g, at) * kLead;
      simd::Vec sums[kHeads];
      for (int h = 0; h < kHeads; ++h) sums[h] = simd::set(heads_[h].constant);
#pragma GCC unroll 16
      for (int d = 0; d < kLead; ++d) {
        const simd::Vec x = simd::load(panel + d * kLanes);
        for (int h = 0; h < kHeads; ++h) sums[h] = simd::fma(simd::set(heads_[h].vector[d]), x, sums[h]);
      }
      for (int h = 0; h < kHeads; ++h) simd::store(coarse(h) + at, sums[h]);
    }
  }

  // Two panels at a time, so that sums wait less for one another.
  void score_codes(int64_t g) {
    for (int64_t at = 0; at < length_; at += 2 * kLanes) {
      const int8_t* panel = layer_.codes.data() + row(g, at) * kWidth;
      simd::Vec low[kHeads], high[kHeads];
      for (int h = 0; h < kHeads; ++h) low[h] = high[h] = simd::zero();
#pragma GCC unroll 8
      for (int d = 0; d < kWidth; ++d) {
        const simd::Vec x = load_int8(panel + d * kLanes), y = load_int8(panel + (kWidth + d) * kLanes);
        for (int h = 0; h < kHeads; ++h) {
          const simd::Vec q = simd::set(heads_[h].vector[d]);
          low[h] = simd::fma(q, x, low[h]), high[h] = simd::fma(q, y, high[h]);
        }
      }
      const float* steps = layer_.steps.data() + row(g, at);
      for (int h = 0; h < kHeads; ++h) {
        simd::store(coarse(h) + at, simd::mul(low[h], simd::load(steps)));
        simd::store(coarse(h) + at + kLanes, simd::mul(high[h], simd::load(steps + kLanes)));
      }
    }
  }

  // What a bound has to exceed: a little less than the limit, which may rest on the denominator of the coarse scores.
  void look(int64_t g, int h) {
    Head& head = heads_[h];
    head.sums = {-simd::kInfinity, 0};
    simd::Vec top = simd::set(-simd::kInfinity), total = simd::zero();
    for (int64_t at = 0; at < length_; at += kLanes) {
      const simd::Bits valid = simd::first_bits(static_cast<int>(length_ - at));
      top = simd::higher(top, simd::choose(valid, simd::load(coarse(h) + at), top));
    }
    head.sums.highest = simd::highest(top);
    const simd::Vec origin = simd::set(head.sums.highest);
    if (needs_total(a_, head.rule))
      for (int64_t at = 0; at < length_; at += kLanes) {
        const simd::Vec e = simd::exp(simd::sub(simd::load(coarse(h) + at), origin));
        total = simd::add(total, simd::choose(simd::first_bits(static_cast<int>(length_ - at)), e, simd::zero()));
      }
    head.sums.total = simd::sum(total);
    head.limit = limit_of(a_, head.rule, g * kHeads + h, head.sums) - (needs_total(a_, head.rule) ? kMargin : 1e-4f);
  }

  // The keys that some head cannot exclude yet.
  int list(int64_t g) {
    const float* rests = (kind_ == kMapped ? layer_.lead_rest : layer_.errors).data() + row(g, 0);
    int count = 0;
    for (int64_t at = 0; at < length_; at += kLanes) {
      simd::Bits any = 0;
      for (int h = 0; h < kHeads; ++h) {
        const simd::Vec rest = simd::set(heads_[h].rest * kRounding);
        const simd::Vec most = simd::fma(rest, simd::load(rests + at), simd::load(coarse(h) + at));
        any |= simd::above(most, simd::set(heads_[h].limit));
      }
      any &= simd::first_bits(static_cast<int>(length_ - at));
      simd::compress(list_.get() + count, positions_.data() + at, any);
      count += simd::count(any);
    }
    return count;
  }

  // Rows of listed keys from i on, those of a few later ones on their way; past the end the last one again.
  template <int kRow>
  void rows_from(const float* base, int i, int count, const float** rows) const {
    const auto row_at = [&](int j) { return base + list_[std::min(j, count - 1)] * static_cast<int64_t>(kRow); };
    for (int j = i; j < i + kLanes; ++j) {
      rows[j - i] = row_at(j);
      const char* ahead = reinterpret_cast<const char*>(row_at(j + kFew));
      for (size_t at = 0; at < kRow * sizeof(float); at += 64) __builtin_prefetch(ahead + at);
    }
  }

  // Numbers of kLanes listed keys.
  simd::Vec listed(const float* numbers, int i, int count) const {
    float found[kLanes];
    for (int j = 0; j < kLanes; ++j) found[j] = numbers[list_[std::min(i + j, count - 1)]];
    return simd::load(found);
  }

  // Adds the second quarter to the listed keys, and shortens the list.
  int refine(int64_t g, int count) {
    int left = 0;
    for (int i = 0; i < count; i += kLanes) {
      const float* rows[kLanes];
      rows_from<kLead>(layer_.middle.data() + row(g, 0) * kLead, i, count, rows);
      const simd::Vec rests = listed(layer_.middle_rest.data() + row(g, 0), i, count);
      simd::Vec sums[kHeads];
      simd::Bits any = 0;
      for (int h = 0; h < kHeads; ++h) {
        sums[h] = simd::add(listed(coarse(h), i, count), products<kLead>(rows, heads_[h].vector + kLead));
        const simd::Vec most = simd::fma(simd::set(heads_[h].last_rest * kRounding), rests, sums[h]);
        any |= simd::above(most, simd::set(heads_[h].limit));
      }
      any &= simd::first_bits(count - i);
      for (int h = 0; h < kHeads; ++h) simd::compress(refined(h) + left, sums[h], any);
      simd::compress(list_.get() + left, list_.get() + i, any);
      left += simd::count(any);
    }
    return left;
  }

  // Scores of the listed keys; they take the place of the coarse ones in the denominator.
  void finish(int64_t g, int count) {
    for (int i = 0; i < count; i += kLanes) {
      const float* rows[kLanes];
      if (kind_ == kMapped)
        rows_from<kLast>(layer_.last.data() + row(g, 0) * kLast, i, count, rows);
      else
        rows_from<kWidth>(layer_.key.data() + g * s_.keys * kWidth, i, count, rows);
      for (int h = 0; h < kHeads; ++h) {
        Head& head = heads_[h];
        simd::Vec found;
        if (kind_ == kMapped)
          found = simd::add(simd::load(refined(h) + i), products<kLast>(rows, head.vector + 2 * kLead));
        else
          found = products<kWidth>(rows, head.vector);
        simd::store(refined(h) + i, found);
        if (!needs_total(a_, head.rule)) continue;
        const simd::Vec origin = simd::set(head.sums.highest);
        const simd::Vec before = simd::exp(simd::sub(listed(coarse(h), i, count), origin));
        const simd::Vec more = simd::sub(simd::exp(simd::sub(found, origin)), before);
        head.sums.total += simd::sum(simd::choose(simd::first_bits(count - i), more, simd::zero()));
      }
    }
  }

  // What a head keeps of the listed keys.
  void keep(int64_t g, int h, int count) {
    Head& head = heads_[h];
    const simd::Vec limit = simd::set(limit_of(a_, head.rule, g * kHeads + h, head.sums));
    for (int i = 0; i < count; i += kLanes) {
      const simd::Vec found = simd::load(refined(h) + i);
      const simd::Bits bits = simd::above(found, limit) & simd::first_bits(count - i);
      simd::compress(scores(h) + head.count, found, bits);
      simd::compress(keys(h) + head.count, list_.get() + i, bits);
      head.count += simd::count(bits);
    }
  }

  void weigh(int64_t g, int h, float* out) {
    Head& head = heads_[h];
    head.missing = to_weights(a_, head.rule, g * kHeads + h, scores(h), head.count, head.sums, head.limit);
    std::fill_n(out, kWidth, 0.0f);
  }

  void gather_all_heads(int64_t g, float* out) {
    const float* values = row_of<float>(a_.value, 0, g, 0);
    int next[kHeads] = {};
    for (int64_t at = 0; at < length_; at += kNear)
      for (int h = 0; h < kHeads; ++h) {
        const int32_t *from = keys(h) + next[h], *end = keys(h) + heads_[h].count;
        const int stop = static_cast<int>(std::lower_bound(from, end, at + kNear) - keys(h));
        if (stop == next[h]) continue;
        float* sum = out + (g * kHeads + h) * kWidth;
        gather<true>(sum, static_cast<float*>(nullptr), scores(h) + next[h], keys(h) + next[h], stop - next[h], values,
                     a_.value.row, static_cast<int64_t>(kWidth));
        next[h] = stop;
      }
  }

  void add_mean(int64_t g, int h, float* out) const {
    const double factor = heads_[h].missing / static_cast<double>(length_);
    if (factor > 0)
      for (int d = 0; d < kWidth; ++d) out[d] += static_cast<float>(factor * a_.value_sum[g * kWidth + d]);
  }

  const Kind kind_;
  const Attention& a_;
  const Sizes& s_;
  Data& layer_;
  const int64_t query_, length_;
  std::array<Head, kHeads> heads_;
  std::vector<int32_t> positions_;
  std::unique_ptr<int32_t[]> list_;
  std::unique_ptr<float[]> floats_;
  std::unique_ptr<int32_t[]> keys_;
};
