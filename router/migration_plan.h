// What it takes to get from one placement to another.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "model/migration_format.h"
#include "placement/placement.h"

namespace moe {

struct MigrationPlan {
  /// Two copies of an expert, the second of which comes new: their checksums must be the same.
  struct Comparison {
    int layer = 0;
    int expert = 0;
    std::size_t known_worker = 0;
    std::size_t known_index = 0;  // of its checksum among those that the worker tells
    std::size_t new_worker = 0;
    std::size_t new_index = 0;
  };

  std::vector<WorkerPreparation> workers;  // by worker
  std::vector<std::size_t> checksums;      // by worker: how many it is to tell
  std::vector<Comparison> comparisons;     // one for each slot whose expert comes new to its worker
};

/// Both are of the same layers, experts and workers (CheckPlacement).
MigrationPlan PlanMigration(const Placement& from, const Placement& to, std::uint64_t bytes_per_s);

}  // namespace moe
