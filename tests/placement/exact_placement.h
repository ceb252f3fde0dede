// The best placement of a small layer, by trying them all: the oracle for the algorithms.
#pragma once

#include <span>

#include "placement/layer_assignment.h"

namespace moe {

/// The least time that the slowest worker can take when each expert is on any set of workers, within the room. Tries up
/// to (2^workers − 1)^experts placements, less what a branch cannot better: for a few experts on a few workers.
double LeastSlowestTime(std::span<const double> load, const WorkerRoom& room);

}  // namespace moe
