// One layer's cache as staged_kernel.py wrote it, and the copies of its keys that stages read.
#pragma once

#include <fstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "../../csrc/candidates.h"

constexpr int kLanes = simd::kLanes;

enum Kind { kMapped, kRounded };

struct Sizes {
  int64_t layers, heads, groups, queries, keys, width;
  int64_t room() const { return (keys + 2 * kSlack + 2 * kLanes - 1) / (2 * kLanes) * (2 * kLanes); }
};

inline float norm(const float* x, int n) {
  float sum = 0;
  for (int i = 0; i < n; ++i) sum += x[i] * x[i];
  return std::sqrt(sum);
}

// Panels: kLanes keys side by side, dimension after dimension.
template <int kWidth>
struct Layer {
  static constexpr int kLead = kWidth / 4, kLast = kWidth / 2;

  std::vector<float> query, key, value, mean, to_query, to_key, theta, relative;
  std::vector<double> value_sums;                              // [queries, groups, kWidth], of visible rows
  std::vector<float> lead, lead_rest, middle, middle_rest, last;  // mapped
  std::vector<int8_t> codes;                                   // rounded
  std::vector<float> steps, errors;

  Layer(std::ifstream& file, const Sizes& s) {
    const int64_t rows = s.heads * s.queries, cache = s.groups * s.keys * kWidth, square = s.groups * kWidth * kWidth;
    const std::pair<std::vector<float>*, int64_t> parts[] = {
        {&query, rows * kWidth}, {&key, cache}, {&value, cache}, {&mean, s.groups * kWidth}, {&to_query, square},
        {&to_key, square}, {&theta, rows}, {&relative, rows}};
    for (auto [to, size] : parts) {
      to->resize(size);
      file.read(reinterpret_cast<char*>(to->data()), size * sizeof(float));
    }
    if (!file) throw std::runtime_error("the file is too short");
    const int64_t all = s.groups * s.room();
    lead.resize(all * kLead), middle.resize(all * kLead), last.resize(all * kLast);
    lead_rest.resize(all), middle_rest.resize(all), steps.resize(all), errors.resize(all), codes.resize(all * kWidth);
    for (int64_t g = 0; g < s.groups; ++g)
      for (int64_t at = 0; at < s.keys; ++at) put(kMapped, s, g, at), put(kRounded, s, g, at);
    add_up(s);
  }

  // The copies of one key, as they are made when it joins the cache.
  void put(Kind kind, const Sizes& s, int64_t group, int64_t at) {
    const float* from = key.data() + (group * s.keys + at) * kWidth;
    const int64_t panel = (group * s.room() + at) / kLanes, lane = at % kLanes, row = group * s.room() + at;
    float x[kWidth] = {};
    if (kind == kRounded) {
      float most = 0;
      for (int d = 0; d < kWidth; ++d) most = std::max(most, std::fabs(from[d]));
      steps[row] = std::max(most / 127, 1e-30f);
      for (int d = 0; d < kWidth; ++d) {
        const float code = std::nearbyint(from[d] / steps[row]);
        codes[(panel * kWidth + d) * kLanes + lane] = static_cast<int8_t>(code);
        x[d] = from[d] - code * steps[row];
      }
      errors[row] = norm(x, kWidth);
      return;
    }
    for (int d = 0; d < kWidth; ++d) {
      const float centered = from[d] - mean[group * kWidth + d];
      const float* axes = to_key.data() + (group * kWidth + d) * kWidth;
      for (int e = 0; e < kWidth; ++e) x[e] += centered * axes[e];
    }
    for (int d = 0; d < kLead; ++d) lead[(panel * kLead + d) * kLanes + lane] = x[d];
    std::copy_n(x + kLead, kLead, middle.data() + row * kLead);
    std::copy_n(x + 2 * kLead, kLast, last.data() + row * kLast);
    lead_rest[row] = norm(x + kLead, kWidth - kLead), middle_rest[row] = norm(x + 2 * kLead, kLast);
  }

 private:
  void add_up(const Sizes& s) {
    value_sums.resize(s.queries * s.groups * kWidth);
    for (int64_t g = 0; g < s.groups; ++g) {
      double sum[kWidth] = {};
      for (int64_t at = 0; at < s.keys; ++at) {
        for (int d = 0; d < kWidth; ++d) sum[d] += value[(g * s.keys + at) * kWidth + d];
        const int64_t i = at - (s.keys - s.queries);
        if (i >= 0) std::copy_n(sum, kWidth, value_sums.data() + (i * s.groups + g) * kWidth);
      }
    }
  }
};
