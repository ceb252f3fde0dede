// First assignments of a layer, which a search then betters.
#pragma once

#include <span>

#include "placement/layer_assignment.h"

namespace moe {

/// `replicas`, (experts), of each expert, largest shares first, each on the worker that is least busy with it, has a
/// slot and lacks the expert. Where no worker is left for a replica, others make room; where that cannot be, an expert
/// has fewer. Nobody hosts anything before.
void PackLargestFirst(LayerAssignment& assignment, std::span<const int> replicas);

/// Experts on all workers' slots that `hosted`, (experts, workers), has, as far as the workers' room goes: what is too
/// much is dropped where there are other replicas, else moved. Every expert has a replica there.
void PackAsBefore(LayerAssignment& assignment, std::span<const std::uint8_t> hosted);

/// Further replicas in slots that are still free, heaviest shares first on the least busy worker, as long as the
/// slowest worker takes no longer for it.
void FillFreeSlots(LayerAssignment& assignment);

}  // namespace moe
