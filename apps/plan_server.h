// What a running router tells about its load: for `moe_plan placement --server`.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "core/status.h"
#include "placement/placement.h"
#include "placement/placement_problem.h"
#include "placement/step_cost.h"

namespace moe {

struct ServerLoads {
  std::vector<LayerLoad> loads;  // of its sliding window, with the window's parts as samples
  double window_steps = 0;
  Placement placement;  // in force
  StepCost cost;
  std::uint64_t bytes_per_expert = 0;
};

/// Asks the router at `address` (HOST:PORT). UNAVAILABLE or DEADLINE_EXCEEDED naming it when it does not answer in
/// time; INVALID_ARGUMENT when it has no experts, FAILED_PRECONDITION when a worker is lost.
Result<ServerLoads> AskServer(const std::string& address, std::chrono::milliseconds timeout);

}  // namespace moe
