#include "placement/placement.h"

#include <algorithm>
#include <set>

#include "core/check.h"

namespace moe {
namespace {

using Slots = std::vector<std::vector<int>>;  // of one layer, by worker

// Every layer gets `slots`, after the replicas are added.
Result<Placement> Repeat(const PlacementShape& shape, Slots slots) {
  if (shape.redundant_experts > 0 && shape.num_experts == 0)
    return InvalidArgument("redundant experts ", shape.redundant_experts, ": the model has no experts");
  for (int i = 0; i < shape.redundant_experts; ++i) {
    const int expert = i % shape.num_experts;
    std::vector<int>* emptiest = nullptr;
    for (std::vector<int>& worker : slots) {
      if (std::find(worker.begin(), worker.end(), expert) != worker.end()) continue;
      if (emptiest == nullptr || worker.size() < emptiest->size()) emptiest = &worker;
    }
    if (emptiest == nullptr)
      return InvalidArgument("redundant experts ", shape.redundant_experts, ": every one of ", shape.workers,
                             " worker(s) has expert ", expert, " already; at most ",
                             shape.num_experts * (shape.workers - 1), " fit");
    emptiest->push_back(expert);
  }
  Placement placement{.num_experts = shape.num_experts, .workers = shape.workers};
  for (const int layer : shape.layers) placement.layers.push_back({layer, slots});
  return placement;
}

Status CheckLayer(const LayerPlacement& layer, const PlacementShape& shape) {
  if (layer.slots.size() != static_cast<std::size_t>(shape.workers))
    return InvalidArgument("layer ", layer.layer, " has slots for ", layer.slots.size(), " workers, there are ",
                           shape.workers);
  std::set<int> hosted;
  for (std::size_t w = 0; w < layer.slots.size(); ++w) {
    std::set<int> here;
    for (const int expert : layer.slots[w]) {
      if (expert < 0 || expert >= shape.num_experts)
        return InvalidArgument("layer ", layer.layer, ", worker ", w, ": expert ", expert, " is not in 0 … ",
                               shape.num_experts - 1);
      if (!here.insert(expert).second)
        return InvalidArgument("layer ", layer.layer, ", worker ", w, ": expert ", expert, " is there twice");
    }
    hosted.insert(here.begin(), here.end());
  }
  for (int expert = 0; expert < shape.num_experts; ++expert)
    if (!hosted.contains(expert)) return InvalidArgument("layer ", layer.layer, ": expert ", expert, " has no slot");
  return Status::Ok();
}

}  // namespace

Result<Placement> LinearPlacement(const PlacementShape& shape) {
  Slots slots(static_cast<std::size_t>(shape.workers));
  const int least = shape.num_experts / shape.workers;
  const int larger = shape.num_experts % shape.workers;
  int expert = 0;
  for (int w = 0; w < shape.workers; ++w)
    for (int i = 0; i < least + (w < larger ? 1 : 0); ++i) slots[static_cast<std::size_t>(w)].push_back(expert++);
  return Repeat(shape, std::move(slots));
}

Result<Placement> RoundRobinPlacement(const PlacementShape& shape) {
  Slots slots(static_cast<std::size_t>(shape.workers));
  for (int expert = 0; expert < shape.num_experts; ++expert)
    slots[static_cast<std::size_t>(expert % shape.workers)].push_back(expert);
  return Repeat(shape, std::move(slots));
}

Status CheckPlacement(const Placement& placement, const PlacementShape& shape) {
  if (placement.num_experts != shape.num_experts)
    return InvalidArgument("num_experts ", placement.num_experts, " is not the model's ", shape.num_experts);
  if (placement.workers != shape.workers)
    return InvalidArgument("workers ", placement.workers, " is not the cluster's ", shape.workers);
  if (placement.layers.size() != shape.layers.size())
    return InvalidArgument("it places ", placement.layers.size(), " layers, the model has ", shape.layers.size(),
                           " sparse ones");
  for (std::size_t i = 0; i < shape.layers.size(); ++i) {
    if (placement.layers[i].layer != shape.layers[i])
      return InvalidArgument("layer ", placement.layers[i].layer, " stands where sparse layer ", shape.layers[i],
                             " was expected");
    MOE_RETURN_IF_ERROR(CheckLayer(placement.layers[i], shape));
  }
  return Status::Ok();
}

int MostSlots(const Placement& placement) {
  std::size_t most = 0;
  for (const LayerPlacement& layer : placement.layers) {
    std::size_t slots = 0;
    for (const std::vector<int>& worker : layer.slots) slots += worker.size();
    most = std::max(most, slots);
  }
  return static_cast<int>(most);
}

ReplicaTable::ReplicaTable(const Placement& placement, const WorkerMask& workers)
    : num_experts_(static_cast<std::size_t>(placement.num_experts)) {
  offsets_.push_back(0);
  for (const LayerPlacement& layer : placement.layers) {
    for (int expert = 0; expert < placement.num_experts; ++expert) {
      for (std::size_t w = 0; w < layer.slots.size(); ++w) {
        if (workers[w] == 0) continue;
        const std::vector<int>& slots = layer.slots[w];
        const auto found = std::find(slots.begin(), slots.end(), expert);
        if (found != slots.end())
          slots_.push_back({WorkerId(static_cast<int>(w)), static_cast<std::uint32_t>(found - slots.begin())});
      }
      complete_ = complete_ && slots_.size() > offsets_.back();
      offsets_.push_back(static_cast<std::uint32_t>(slots_.size()));
    }
  }
}

std::span<const ReplicaSlot> ReplicaTable::replicas(std::size_t sparse_index, std::size_t expert) const {
  const std::size_t i = sparse_index * num_experts_ + expert;
  MOE_CHECK(expert < num_experts_ && i + 1 < offsets_.size());
  return std::span(slots_).subspan(offsets_[i], offsets_[i + 1] - offsets_[i]);
}

}  // namespace moe
