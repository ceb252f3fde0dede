// What no placement can better.
#pragma once

#include <span>
#include <vector>

#include "placement/layer_assignment.h"

namespace moe {

/// Replicas of each expert, (experts), one at least and as many as workers have slots at most: each further one, while
/// there are fewer than `slots` in all, to the expert with the most load per replica (lowest id on a tie).
std::vector<int> ReplicaCounts(std::span<const double> load, int slots, const WorkerRoom& room);

/// A time that the slowest worker takes at least: max(Σ load / Σ speed, the most that a replica takes when the slots
/// are given to the heaviest shares in turn and each expert sits on the fastest workers). With equal speeds the
/// reference's max(mean load, max load_e / replicas_e).
double LowerBound(std::span<const double> load, const WorkerRoom& room);

}  // namespace moe
