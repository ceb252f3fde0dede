// Which worker hosts which experts: data, the two plain algorithms, and the file form.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "core/ids.h"
#include "core/status.h"
#include "core/worker_mask.h"
#include "model/config.h"

namespace moe {

/// The slots of one sparse layer: slots[w][s] is the expert in slot s of worker w.
struct LayerPlacement {
  int layer = 0;  // absolute index
  std::vector<std::vector<int>> slots;

  bool operator==(const LayerPlacement&) const = default;
};

/// One generation: logical expert → slots → workers, for every sparse layer. Every expert has at least one slot, and no
/// worker has two of the same expert.
struct Placement {
  std::uint64_t generation = 1;
  int num_experts = 0;
  int workers = 0;
  std::vector<LayerPlacement> layers;  // ascending
};

/// What a placement is made for.
struct PlacementShape {
  int num_experts = 0;
  int workers = 0;
  std::vector<int> layers;    // absolute indices of the sparse layers
  int redundant_experts = 0;  // extra slots per layer, over all workers
};

/// `linear`: consecutive experts to each worker, the counts as even as can be, larger ones first. `round_robin`:
/// expert e to worker e mod W. Then replicas in id order, each on the emptiest worker (lowest index on a tie) without
/// that expert. INVALID_ARGUMENT when there are more replicas than such workers.
Result<Placement> LinearPlacement(const PlacementShape& shape);
Result<Placement> RoundRobinPlacement(const PlacementShape& shape);

/// INVALID_ARGUMENT naming what is wrong: layers, workers or experts that are not those of `shape`, an expert without a
/// slot, or twice on a worker. `shape.redundant_experts` is not looked at.
Status CheckPlacement(const Placement& placement, const PlacementShape& shape);

/// Slots of the layer that has the most, over all workers.
int MostSlots(const Placement& placement);

/// The JSON form (docs/placement-format.md), schema 1, and back; reading checks the form, not the shape.
Result<Placement> ReadPlacementFile(const std::filesystem::path& path);
std::string PlacementJson(const Placement& placement);

/// Where a token's row for an expert can go.
struct ReplicaSlot {
  WorkerId worker;
  std::uint32_t slot = 0;  // of that worker, in that layer
};

/// The placement turned round for the dispatch plan: expert → replicas, in order of worker.
class ReplicaTable {
 public:
  explicit ReplicaTable(const Placement& placement) : ReplicaTable(placement, AllWorkers(placement.workers)) {}
  /// Of some workers' slots alone. An expert that none of them hosts has no replica.
  ReplicaTable(const Placement& placement, const WorkerMask& workers);
  /// Whether every expert of every layer has a replica.
  bool complete() const { return complete_; }
  /// `sparse_index` counts the sparse layers.
  std::span<const ReplicaSlot> replicas(std::size_t sparse_index, std::size_t expert) const;

 private:
  std::size_t num_experts_ = 0;
  bool complete_ = true;
  std::vector<std::uint32_t> offsets_;  // (sparse layers * experts + 1)
  std::vector<ReplicaSlot> slots_;
};

}  // namespace moe
