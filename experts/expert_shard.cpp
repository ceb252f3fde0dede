#include "experts/expert_shard.h"

#include <algorithm>
#include <utility>

namespace moe {

ExpertShard ExpertShard::Unloaded(const ModelConfig& config, const Placement& placement, WorkerId worker) {
  ExpertShard shard;
  shard.generation_ = placement.generation;
  for (const LayerPlacement& placed : placement.layers) {
    const MoeSpec& moe = *config.layers[static_cast<std::size_t>(placed.layer)].moe;
    Layer& layer = shard.layers_.emplace_back(Layer{.layer = placed.layer,
                                                    .mlp = moe.expert,
                                                    .scales_input = moe.gate.scales_input,
                                                    .experts = placed.slots[worker.index()],
                                                    .weights = {}});
    layer.weights.resize(layer.experts.size());
  }
  return shard;
}

Result<ExpertShard> ExpertShard::Load(const ModelConfig& config, const Checkpoint& checkpoint,
                                      const Placement& placement, WorkerId worker, const WeightForm& form,
                                      ThreadPool& pool) {
  ExpertShard shard = Unloaded(config, placement, worker);
  const auto load = [&](int layer, int expert) { return LoadExpertWeights(config, checkpoint, layer, expert, form); };
  MOE_RETURN_IF_ERROR(shard.LoadMissing(load, pool));
  return shard;
}

Status ExpertShard::LoadMissing(const ExpertLoader& load, ThreadPool& pool) {
  const std::vector<Missing> todo = missing();
  std::vector<Status> outcome(todo.size());
  pool.ParallelFor(todo.size(), [&](std::size_t i, int) {
    const Layer& layer = layers_[todo[i].index];
    Result<MlpWeights> weights = load(layer.layer, layer.experts[todo[i].slot]);
    outcome[i] = weights.status();
    if (weights.ok()) Put(todo[i], std::make_shared<const MlpWeights>(*std::move(weights)));
  });
  for (const Status& status : outcome) MOE_RETURN_IF_ERROR(status);
  return Status::Ok();
}

Result<ExpertShard> ExpertShard::Rearranged(std::uint64_t generation,
                                            std::span<const WorkerAssignment::Layer> layers) const {
  ExpertShard other = *this;
  other.generation_ = generation;
  for (const WorkerAssignment::Layer& wanted : layers) {
    const auto layer = std::ranges::find(other.layers_, wanted.layer, &Layer::layer);
    if (layer == other.layers_.end()) return InvalidArgument("layer ", wanted.layer, " has no experts");
    layer->experts = wanted.slots;
    layer->weights.assign(wanted.slots.size(), nullptr);
  }
  other.TakeFrom(*this);
  return other;
}

void ExpertShard::TakeFrom(const ExpertShard& other) {
  for (const Missing& missing : this->missing()) {
    const Layer& layer = layers_[missing.index];
    Put(missing, other.Expert(layer.layer, layer.experts[missing.slot]));
  }
}

void ExpertShard::Put(const Missing& where, std::shared_ptr<const MlpWeights> weights) {
  layers_[where.index].weights[where.slot] = std::move(weights);
}

std::vector<ExpertShard::Missing> ExpertShard::missing() const {
  std::vector<Missing> missing;
  for (std::size_t i = 0; i < layers_.size(); ++i)
    for (std::size_t slot = 0; slot < layers_[i].weights.size(); ++slot)
      if (layers_[i].weights[slot] == nullptr) missing.push_back({.index = i, .slot = slot});
  return missing;
}

std::shared_ptr<const MlpWeights> ExpertShard::Expert(int layer, int expert) const {
  const Layer* const found = Find(static_cast<std::uint32_t>(layer));
  if (found == nullptr) return nullptr;
  const auto slot = std::ranges::find(found->experts, expert);
  return slot == found->experts.end() ? nullptr
                                      : found->weights[static_cast<std::size_t>(slot - found->experts.begin())];
}

std::size_t ExpertShard::most_slots() const {
  std::size_t most = 0;
  for (const Layer& layer : layers_) most = std::max(most, layer.experts.size());
  return most;
}

std::uint64_t ExpertShard::slots() const {
  std::uint64_t slots = 0;
  for (const Layer& layer : layers_) slots += layer.experts.size();
  return slots;
}

std::uint64_t ExpertShard::parameters() const {
  std::uint64_t parameters = 0;
  for (const Layer& layer : layers_)
    for (const auto& expert : layer.weights) parameters += expert == nullptr ? 0 : expert->parameters();
  return parameters;
}

std::uint64_t ExpertShard::bytes() const {
  std::uint64_t bytes = 0;
  for (const Layer& layer : layers_)
    for (const auto& expert : layer.weights) bytes += expert == nullptr ? 0 : expert->bytes();
  return bytes;
}

const ExpertShard::Layer* ExpertShard::Find(std::uint32_t layer) const {
  const auto found = std::lower_bound(layers_.begin(), layers_.end(), layer, [](const Layer& a, std::uint32_t index) {
    return static_cast<std::uint32_t>(a.layer) < index;
  });
  return found != layers_.end() && static_cast<std::uint32_t>(found->layer) == layer ? &*found : nullptr;
}

}  // namespace moe
