#include "model/parameter_count.h"

namespace moe {
namespace {

std::uint64_t Sum(const std::vector<TensorSpec>& specs) {
  std::uint64_t sum = 0;
  for (const TensorSpec& spec : specs) sum += spec.elements();
  return sum;
}

}  // namespace

std::string_view Name(ModelPart part) {
  switch (part) {
    case ModelPart::kEmbedding: return "embedding";
    case ModelPart::kAttention: return "attention";
    case ModelPart::kRouter: return "router";
    case ModelPart::kExperts: return "experts";
    case ModelPart::kSharedExperts: return "shared_experts";
    case ModelPart::kDenseFfn: return "dense_ffn";
    case ModelPart::kNorms: return "norms";
    case ModelPart::kHead: return "head";
  }
  return "unknown";
}

ParameterCount CountParameters(const ModelConfig& config) {
  ParameterCount count;
  std::uint64_t idle_experts = 0;  // parameters of those that a token does not visit
  const auto add = [&](const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) count.by_part[static_cast<std::size_t>(spec.part)] += spec.elements();
  };
  add(OuterTensors(config));
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    add(LayerTensors(config, layer));
    std::uint64_t each = 0;
    if (const auto& moe = config.layers[static_cast<std::size_t>(layer)].moe) {
      each = Sum(ExpertTensors(config, layer, 0));
      const auto num_experts = static_cast<std::uint64_t>(moe->gate.num_experts);
      const auto visited = static_cast<std::uint64_t>(moe->gate.experts_per_token);
      count.by_part[static_cast<std::size_t>(ModelPart::kExperts)] += num_experts * each;
      idle_experts += (num_experts - visited) * each;
    }
    count.parameters_each.push_back(each);
  }
  for (const std::uint64_t part : count.by_part) count.total += part;
  count.active = count.total - idle_experts;
  count.active_without_embedding = count.active;
  if (!config.tied_embeddings) count.active_without_embedding -= count.part(ModelPart::kEmbedding);
  return count;
}

}  // namespace moe
