// `moe_bench placement`: ours against eplb over many random cases, and how long a large model takes.
#pragma once

#include <cstdint>
#include <string>

#include "core/status.h"

namespace moe {

struct PlacementBenchOptions {
  std::size_t cases = 1000;
  std::uint64_t seed = 1;
  int layers = 61;  // of the model that is timed
  int experts = 256;
  int workers = 64;
  int slots = 320;
  int repetitions = 5;
};

struct PlacementBenchResult {
  std::size_t cases = 0;
  std::size_t worse = 0;         // cases in which ours has the slower slowest worker
  std::size_t roomy = 0;         // with at least as many slots as experts and workers together
  std::size_t roomy_within = 0;  // of those, within 1 % of the lower bound
  double roomy_ours = 0;         // mean over those of lower bound / slowest time
  double roomy_eplb = 0;
  double all_ours = 0;  // the same over all cases
  double all_eplb = 0;
  std::size_t drifted_worse = 0;  // after the loads drift by up to a tenth, each from its own placement
  double drifted_ours = 0;        // mean over all cases
  double drifted_eplb = 0;
  std::uint64_t ours_moved = 0;  // experts, over all cases
  std::uint64_t eplb_moved = 0;
  double seconds = 0;          // the median time of a placement of the large model, Zipf 1.0
  double drifted_seconds = 0;  // the same from that placement, with loads drifted
  double eplb_seconds = 0;

  double moved_ratio() const {
    return eplb_moved == 0 ? 0 : static_cast<double>(ours_moved) / static_cast<double>(eplb_moved);
  }
};

/// INVALID_ARGUMENT for a large model that cannot be; INTERNAL if a placement breaks a rule.
Result<PlacementBenchResult> RunPlacementBench(const PlacementBenchOptions& options);

std::string PlacementBenchJson(const PlacementBenchResult& result);
std::string PlacementBenchTable(const PlacementBenchResult& result, const PlacementBenchOptions& options);

}  // namespace moe
