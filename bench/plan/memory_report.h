// What `moe_plan memory` prints.
#pragma once

#include <string>
#include <vector>

#include "bench/plan/memory_plan.h"
#include "bench/plan/models.h"

namespace moe {

struct MemoryReport {
  const NamedModel& model;
  const MemoryOptions& options;
  std::string device;  // whose memory: "this machine", "h100-sxm", "--device-memory"
  struct Entry {
    WeightScheme scheme;
    MemoryPlan plan;
  };
  std::vector<Entry> entries;  // by weight type; at least one
};

/// JSON with a newline at its end; docs/planner.md has the keys.
std::string MemoryJson(const MemoryReport& report);
/// Ranks one by one when there is one weight type, else a line for each type.
std::string MemoryText(const MemoryReport& report);

}  // namespace moe
