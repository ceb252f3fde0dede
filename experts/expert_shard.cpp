#include "experts/expert_shard.h"

#include <algorithm>
#include <utility>

namespace moe {

Result<ExpertShard> ExpertShard::Load(const ModelConfig& config, const Checkpoint& checkpoint,
                                      const Placement& placement, WorkerId worker, const WeightForm& form,
                                      ThreadPool& pool) {
  ExpertShard shard;
  shard.generation_ = placement.generation;
  std::vector<std::pair<std::size_t, std::size_t>> todo;  // (index of the layer here, slot)
  for (const LayerPlacement& placed : placement.layers) {
    const MoeSpec& moe = *config.layers[static_cast<std::size_t>(placed.layer)].moe;
    Layer layer{.layer = placed.layer,
                .mlp = moe.expert,
                .scales_input = moe.gate.scales_input,
                .experts = placed.slots[worker.index()]};
    layer.weights.resize(layer.experts.size());
    for (std::size_t slot = 0; slot < layer.experts.size(); ++slot) todo.emplace_back(shard.layers_.size(), slot);
    shard.layers_.push_back(std::move(layer));
  }
  std::vector<Status> outcome(todo.size());
  pool.ParallelFor(todo.size(), [&](std::size_t i, int) {
    Layer& layer = shard.layers_[todo[i].first];
    const std::size_t slot = todo[i].second;
    Result<MlpWeights> weights = LoadExpertWeights(config, checkpoint, layer.layer, layer.experts[slot], form);
    outcome[i] = weights.status();
    if (weights.ok()) layer.weights[slot] = *std::move(weights);
  });
  for (const Status& status : outcome) MOE_RETURN_IF_ERROR(status);
  for (const Layer& layer : shard.layers_) {
    for (const MlpWeights& weights : layer.weights) {
      shard.parameters_ += weights.parameters();
      shard.bytes_ += weights.bytes();
    }
  }
  return shard;
}

std::size_t ExpertShard::most_slots() const {
  std::size_t most = 0;
  for (const Layer& layer : layers_) most = std::max(most, layer.experts.size());
  return most;
}

const ExpertShard::Layer* ExpertShard::Find(std::uint32_t layer) const {
  const auto found = std::lower_bound(layers_.begin(), layers_.end(), layer, [](const Layer& a, std::uint32_t index) {
    return static_cast<std::uint32_t>(a.layer) < index;
  });
  return found != layers_.end() && static_cast<std::uint32_t>(found->layer) == layer ? &*found : nullptr;
}

}  // namespace moe
