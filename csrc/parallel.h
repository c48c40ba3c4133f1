// Work shared by the threads of torch's OpenMP pool.
#pragma once

#include <cstdint>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// work() on every one of some threads; on one thread without a team, which takes longer to make than a small call.
template <typename Work>
void on_threads(int threads, Work work) {
  if (threads == 1) return work();
#pragma omp parallel num_threads(threads)
  work();
}

// work(i) for every item, on some threads. A failed allocation is thrown where it can be caught.
template <typename Work>
void for_each_item(int64_t count, int threads, Work work) {
  bool failed = false;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t i = 0; i < count; ++i) {
    try {
      work(i);
    } catch (const std::bad_alloc&) {
#pragma omp atomic write
      failed = true;
    }
  }
  if (failed) throw std::bad_alloc();
}
