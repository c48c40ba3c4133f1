// The values of a decoding step: those that the heads of a group keep are weighed together, a range of keys at a time.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "attention.h"
#include "weigh.h"

// What a row keeps: keys in rising order, and their weights.
struct KeptKeys {
  const float* weights = nullptr;
  const int32_t* keys = nullptr;
  int count = 0;      // of them, without those whose weight underflowed
  int kept = 0;       // with those
  float missing = 0;  // what the weights lack, which goes to the mean of the values
  bool spoiled = false;
  uint8_t flags = 0;
};

template <typename T>
class StepValues {
 public:
  // rows: filled before values are gathered.
  StepValues(const Attention& a, int64_t parts, const std::vector<KeptKeys>& rows)
      : a_(a),
        rows_(rows),
        parts_(parts),
        sums_(parts * rows.size() * a.value_width),
        plain_(a.mean_of_dropped ? sums_.size() : 0),
        next_(parts * rows.size()) {}

  // One key range's part of the weighted values of a group's heads.
  void gather_part(int64_t group_row, int64_t part) {
    const int64_t batch = group_row / a_.groups, group = group_row % a_.groups;
    const int64_t begin = first_of(a_, batch), length = last_of(a_, batch) - begin;
    const int64_t from = begin + length * part / parts_, to = begin + length * (part + 1) / parts_;
    if (from == to) return;
    const int64_t first_row = batch * a_.heads + group * per_group();
    const T* values = row_of<T>(a_.value, batch, group, 0);
    int* next = next_of(part, first_row);
    for (int64_t h = 0; h < per_group(); ++h) next[h] = until(first_row + h, 0, from);
    for (int64_t key = from; key < to; key += kShared) {
      for (int64_t h = 0; h < per_group(); ++h) {
        const int64_t row = first_row + h;
        const int stop = until(row, next[h], std::min(key + kShared, to));
        if (stop == next[h]) continue;
        const int64_t at = (part * static_cast<int64_t>(rows_.size()) + row) * a_.value_width;
        gather<true>(sums_.data() + at, plain_of(at), rows_[row].weights + next[h], rows_[row].keys + next[h],
                     stop - next[h], values, a_.value.row, a_.value_width);
        next[h] = stop;
      }
    }
  }

  // The weighted values of a row, from all key ranges.
  void write(int64_t row) {
    const KeptKeys& kept = rows_[row];
    const int64_t width = a_.value_width, rows = rows_.size();
    float* out = sums_.data() + row * width;
    float* plain = plain_of(row * width);
    for (int64_t p = 1; p < parts_; ++p)
      for (int64_t e = 0; e < width; ++e) {
        out[e] += out[p * rows * width + e];
        if (plain) plain[e] += plain[p * rows * width + e];
      }
    if (kept.missing > 0) add_mean(row, kept, out, plain);
    if (kept.spoiled) std::fill_n(out, width, std::numeric_limits<float>::quiet_NaN());
    write_row<T>(a_.out, row / a_.heads, row % a_.heads, 0, out, width);
  }

  // How many keys at least one of a group's heads keeps; `row` is that of the first.
  int union_of(int64_t row) {
    int* next = next_of(0, row);
    std::fill_n(next, per_group(), 0);
    for (int found = 0;; ++found) {
      int32_t lowest = std::numeric_limits<int32_t>::max();
      for (int64_t h = 0; h < per_group(); ++h)
        if (next[h] < rows_[row + h].count) lowest = std::min(lowest, rows_[row + h].keys[next[h]]);
      if (lowest == std::numeric_limits<int32_t>::max()) return found;
      for (int64_t h = 0; h < per_group(); ++h)
        next[h] += next[h] < rows_[row + h].count && rows_[row + h].keys[next[h]] == lowest;
    }
  }

 private:
  static constexpr int64_t kShared = 128;  // keys whose value rows the heads of a group share in the first-level cache

  int64_t per_group() const { return a_.heads / a_.groups; }
  // Of each head of a group, the next candidate.
  int* next_of(int64_t part, int64_t row) { return next_.data() + part * static_cast<int64_t>(rows_.size()) + row; }
  float* plain_of(int64_t at) { return a_.mean_of_dropped ? plain_.data() + at : nullptr; }

  // The first candidate of a row, from `from` on, whose key is `key` or later.
  int until(int64_t row, int from, int64_t key) const {
    const int32_t* keys = rows_[row].keys;
    return static_cast<int>(std::lower_bound(keys + from, keys + rows_[row].count, static_cast<int32_t>(key)) - keys);
  }

  void add_mean(int64_t row, const KeptKeys& kept, float* out, const float* plain) const {
    const int64_t width = a_.value_width, group = row / per_group(), batch = row / a_.heads;
    alignas(64) double added[kMostWidth];
    const double* sum = a_.value_sum ? a_.value_sum + group * width : added;
    if (!a_.value_sum) add_up_values(row, added);
    const int64_t members = last_of(a_, batch) - first_of(a_, batch) - (plain ? kept.kept : 0);
    const double factor = kept.missing / static_cast<double>(std::max<int64_t>(members, 1));
    for (int64_t e = 0; e < width; ++e) out[e] += static_cast<float>(factor * (sum[e] - (plain ? plain[e] : 0.0f)));
  }

  // sum = all value rows that a row sees.
  void add_up_values(int64_t row, double* sum) const {
    const int64_t batch = row / a_.heads, group = row / per_group() % a_.groups, width = a_.value_width;
    std::fill_n(sum, width, 0.0);
    for (int64_t j = first_of(a_, batch); j < last_of(a_, batch); ++j) {
      const T* values = row_of<T>(a_.value, batch, group, j);
      for (int64_t e = 0; e < width; ++e) sum[e] += Stored<T>::get(values + e);
    }
  }

  const Attention& a_;
  const std::vector<KeptKeys>& rows_;
  const int64_t parts_;
  std::vector<float> sums_, plain_;
  std::vector<int> next_;
};
