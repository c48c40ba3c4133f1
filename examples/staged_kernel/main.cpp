// Times a decoding step whose scores come in stages beside the one of csrc/step.h, on what staged_kernel.py wrote.
#include <time.h>

#include <cstdio>

#include "../../csrc/step.h"
#include "staged.h"

namespace {

struct Way {
  const char* selection;
  const char* scores;
  Placement placement;
  Compensation compensation;
  bool staged;
  Kind kind;
};

constexpr Way kWays[] = {
    {"pre-softmax, none", "all scores", kPreSoftmax, kNone, false, kMapped},
    {"pre-softmax, none", "score axes, quarters", kPreSoftmax, kNone, true, kMapped},
    {"pre-softmax, none", "8 bits", kPreSoftmax, kNone, true, kRounded},
    {"post-softmax, sdc+vmc", "all scores", kPostSoftmax, kSdcVmc, false, kMapped},
    {"post-softmax, sdc+vmc", "8 bits, denominator from them", kPostSoftmax, kSdcVmc, true, kRounded},
};
constexpr int kWayCount = sizeof(kWays) / sizeof(kWays[0]);

template <int kWidth, int kHeads>
class Benchmark {
 public:
  Benchmark(std::ifstream& file, const Sizes& sizes)
      : s_(sizes), size_(s_.layers * s_.heads * kWidth), eviction_(1 << 24) {
    for (int64_t i = 0; i < s_.layers; ++i) layers_.emplace_back(file, s_);
  }

  void run() {
    std::vector<double> times[kWayCount];
    double off[kWayCount] = {};
    for (int64_t query = 0; query < s_.queries; ++query) {
      std::vector<float> out[kWayCount];
      for (int i = 0; i < kWayCount; ++i) {
        out[i].resize(size_);
        times[i].push_back(step(kWays[i], query, out[i].data()));
        const float* expected = out[kWays[i].placement == kPreSoftmax ? 0 : 3].data();
        double difference = 0, size = 0;
        for (int64_t j = 0; j < size_; ++j) {
          difference += std::pow(out[i][j] - expected[j], 2);
          size += std::pow(expected[j], 2);
        }
        off[i] = std::max(off[i], std::sqrt(difference / size));
      }
    }
    std::printf("| selection | scores | us per layer | x (quartiles) | relative difference |\n|---|---|---|---|---|\n");
    for (int i = 0; i < kWayCount; ++i) {
      const std::vector<double>& plain = times[kWays[i].placement == kPreSoftmax ? 0 : 3];
      std::vector<double> ratios;
      for (size_t j = 0; j < plain.size(); ++j) ratios.push_back(plain[j] / times[i][j]);
      std::printf("| %s | %s | %.0f | %.2f (%.2f - %.2f) | %.1e |\n", kWays[i].selection, kWays[i].scores,
                  at(times[i], 0.5), at(ratios, 0.5), at(ratios, 0.25), at(ratios, 0.75), off[i]);
    }
  }

 private:
  // Microseconds of processor time per layer, the caches cold as after the rest of a model.
  double step(const Way& way, int64_t query, float* out) {
    for (float& x : eviction_) x += 1;
    timespec start, end;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    for (size_t i = 0; i < layers_.size(); ++i) attend(way, layers_[i], query, out + i * s_.heads * kWidth);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    return ((end.tv_sec - start.tv_sec) * 1e6 + (end.tv_nsec - start.tv_nsec) * 1e-3) / layers_.size();
  }

  void attend(const Way& way, Layer<kWidth>& layer, int64_t query, float* out) {
    const int64_t first = 0, last = s_.keys - s_.queries + 1 + query;
    const float log_length = 0;
    Attention a{};
    a.batches = 1, a.heads = s_.heads, a.groups = s_.groups, a.queries = 1, a.keys = last;
    a.width = a.value_width = kWidth;
    a.query = {bytes(layer.query.data() + query * kWidth), 0, s_.queries * kWidth, kWidth};
    a.key = {bytes(layer.key.data()), 0, s_.keys * kWidth, kWidth};
    a.value = {bytes(layer.value.data()), 0, s_.keys * kWidth, kWidth};
    a.out = {bytes(out), 0, kWidth, kWidth};
    a.scale = 1, a.first = &first, a.last = &last, a.k = 1, a.min_keep = 1;
    a.placement = way.placement, a.compensation = way.compensation;
    a.log_lengths = &log_length, a.columns = 1, a.shortest = 1, a.longest = last;
    a.theta = (way.placement == kPreSoftmax ? layer.theta : layer.relative).data() + query * s_.heads;
    if (way.compensation == kSdcVmc) a.value_sum = layer.value_sums.data() + query * s_.groups * kWidth;
    a.threads = 1;
    if (way.staged)
      Staged<kWidth, kHeads>(way.kind, a, s_, layer, query).run(out);
    else
      attend_step<float>(a);
  }

  static const char* bytes(const float* x) { return reinterpret_cast<const char*>(x); }

  static double at(std::vector<double> x, double share) {
    std::sort(x.begin(), x.end());
    return x[static_cast<size_t>(share * (x.size() - 1))];
  }

  const Sizes s_;
  const int64_t size_;
  std::vector<Layer<kWidth>> layers_;
  std::vector<float> eviction_;
};

template <int kWidth, int kHeads>
bool run(std::ifstream& file, const Sizes& s) {
  if (s.width != kWidth || s.heads != kHeads * s.groups) return false;
  Benchmark<kWidth, kHeads>(file, s).run();
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  std::ifstream file(count > 1 ? arguments[1] : "", std::ios::binary);
  Sizes s{};
  file.read(reinterpret_cast<char*>(&s), sizeof s);
  if (run<64, 3>(file, s) || run<64, 1>(file, s) || run<32, 2>(file, s)) return 0;
  std::fprintf(stderr, "no build for heads of this width, so many per KV head, or no file\n");
  return 1;
}
