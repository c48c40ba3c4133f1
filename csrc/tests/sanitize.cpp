// Runs every kernel on random inputs in memory of exactly their size, for the address and undefined-behaviour
// sanitizers, and compares with plain definitions in double. Exit code 1 where a result is wrong.
#include "check_clusters.h"
#include "check_feed_forward.h"
#include "check_rows.h"

namespace {

// Each call has a seed of its own, so that one that fails can be run alone.
template <typename Check>
bool run(const char* name, uint64_t calls, Check check) {
  for (uint64_t seed = 1; seed <= calls; ++seed) {
    Random random(seed);
    if (check(random)) continue;
    std::printf("%s: call %llu went wrong\n", name, static_cast<unsigned long long>(seed));
    return false;
  }
  std::printf("%s: %llu calls\n", name, static_cast<unsigned long long>(calls));
  return true;
}

}  // namespace

int main() {
  std::setvbuf(stdout, nullptr, _IONBF, 0);  // what was printed is there if a sanitizer ends the program
  std::printf("%d lanes\n", simd::kLanes);
  bool right = true;
  right &= run("many queries, float", 100, [](Random& r) { return check_rows<float>(r, r.between(2, 70)); });
  right &= run("many queries, bf16", 60, [](Random& r) { return check_rows<uint16_t>(r, r.between(2, 70)); });
  right &= run("one query, float", 250, [](Random& r) { return check_rows<float>(r, 1); });
  right &= run("one query, bf16", 130, [](Random& r) { return check_rows<uint16_t>(r, 1); });
  right &= run("clusters, float", 24, check_clusters<float>);
  right &= run("clusters, bf16", 16, check_clusters<uint16_t>);
  right &= run("feed-forward, float", 40, check_feed_forward<float>);
  right &= run("feed-forward, bf16", 40, check_feed_forward<uint16_t>);
  right &= run("pieces", 100, check_same_pieces);
  return right ? 0 : 1;
}
