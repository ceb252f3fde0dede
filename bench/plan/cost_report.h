// What `moe_plan cost` prints.
#pragma once

#include <string>
#include <vector>

#include "bench/plan/cost_plan.h"
#include "bench/plan/models.h"

namespace moe {

struct CostReport {
  const NamedModel& model;
  const WeightScheme& scheme;
  const CostOptions& options;
  std::string device;         // a preset's name, or "given by flags"
  std::string device_source;  // where a preset's figures are from; empty for flags
  std::vector<CostPoint> points;
};

/// JSON with a newline at its end; docs/planner.md has the keys.
std::string CostJson(const CostReport& report);
std::string CostText(const CostReport& report);

}  // namespace moe
