// Some of the workers of a fleet.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/ids.h"

namespace moe {

/// One entry a worker: 1 for those that are meant.
using WorkerMask = std::vector<std::uint8_t>;

inline WorkerMask AllWorkers(int workers) { return WorkerMask(static_cast<std::size_t>(workers), 1); }
inline WorkerMask NoWorkers(int workers) { return WorkerMask(static_cast<std::size_t>(workers), 0); }
inline WorkerMask OneWorker(int workers, WorkerId worker) {
  WorkerMask mask = NoWorkers(workers);
  mask[worker.index()] = 1;
  return mask;
}
inline int CountWorkers(const WorkerMask& mask) { return static_cast<int>(std::ranges::count(mask, 1)); }

}  // namespace moe
