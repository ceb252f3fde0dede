// A local search for placements that are good in the slow steps too, not only on average.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "placement/layer_assignment.h"

namespace moe {

struct SpreadGoal {
  double mean_limit = 0;               // the slowest worker's time under the mean load may not go over it
  std::span<const std::uint8_t> base;  // (experts, workers); empty: moves are free
};

/// Swaps and moves of experts that lower the 95th percentile (nearest rank) over samples, (samples, experts) and at
/// least one, of the slowest worker's time: each by a thousandth at least, and where there is a base by as much for
/// each expert moved. A bounded number.
void RelieveSpread(LayerAssignment& assignment, std::span<const std::vector<double>> samples, const SpreadGoal& goal);

}  // namespace moe
