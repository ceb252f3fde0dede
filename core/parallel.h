// Runs a loop on a pool where that is worth it.
#pragma once

#include <cstddef>

#include "core/function_ref.h"
#include "core/thread_pool.h"

namespace moe {

/// Below this many multiply-adds, waking another thread (5–50 µs) costs more than the work (about 20 µs at 10 GFLOP/s).
inline constexpr std::size_t kWorthSharing = 100'000;

/// Calls `item(i, thread)` for every i in [0, count): on the pool when `work` (about multiply-adds, all items together)
/// is worth it, else here, as thread 0.
inline void ShareOut(ThreadPool& pool, std::size_t count, std::size_t work, FunctionRef<void(std::size_t, int)> item) {
  if (work >= kWorthSharing) {
    pool.ParallelFor(count, item);
  } else {
    for (std::size_t i = 0; i < count; ++i) item(i, 0);
  }
}

}  // namespace moe
