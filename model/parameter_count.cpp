#include "model/parameter_count.h"

#include <set>
#include <string_view>

namespace moe {
namespace {

std::uint64_t Sum(const std::vector<TensorSpec>& specs) {
  std::uint64_t sum = 0;
  for (const TensorSpec& spec : specs) sum += spec.elements();
  return sum;
}

std::uint64_t Elements(const std::vector<std::int64_t>& shape) {
  std::uint64_t count = 1;
  for (const std::int64_t dim : shape) count *= static_cast<std::uint64_t>(dim);
  return count;
}

/// Adds up the stored tensors of weights; several weights may lie in one tensor.
class StoredSum {
 public:
  void Add(const std::vector<TensorSpec>& specs, std::uint64_t times = 1) {
    std::set<std::string_view> seen;
    for (const TensorSpec& spec : specs) {
      if (!seen.insert(spec.name).second) continue;
      const bool blocks = spec.encoding == StoredEncoding::kMxfp4;
      values += times * Elements(blocks ? BlocksShape(spec) : spec.stored_shape);
      if (spec.encoding != StoredEncoding::kPlain) scales += times * Elements(ScalesShape(spec));
    }
  }
  void AddLayer(const ModelConfig& config, int layer) {
    Add(LayerTensors(config, layer));
    const auto& moe = config.layers[static_cast<std::size_t>(layer)].moe;
    if (!moe) return;
    const bool fused = config.names_of(layer).expert_layout.fused;
    Add(ExpertTensors(config, layer, 0), fused ? 1 : static_cast<std::uint64_t>(moe->gate.num_experts));
  }

  std::uint64_t values = 0;
  std::uint64_t scales = 0;
};

CheckpointElements CountElements(const ModelConfig& config) {
  StoredSum main;
  main.Add(OuterTensors(config));
  for (int layer = 0; layer < config.num_layers(); ++layer) main.AddLayer(config, layer);
  CheckpointElements elements{.weights = main.values, .scales = main.scales};
  if (config.prediction_layers == 0) return elements;

  // A layer like the last one; enorm, hnorm, shared_head.norm (hidden), eh_proj (hidden, 2 hidden); embedding and head
  // once more (DeepSeek-V3 technical report, section 2.2; checkpoint layout as published).
  StoredSum extra;
  extra.AddLayer(config, config.num_layers() - 1);
  const auto layers = static_cast<std::uint64_t>(config.prediction_layers);
  const auto hidden = static_cast<std::uint64_t>(config.hidden);
  elements.prediction_layers = layers * (extra.values + 3 * hidden + 2 * hidden * hidden);
  elements.scales += layers * extra.scales;
  elements.duplicates = layers * 2 * static_cast<std::uint64_t>(config.vocab_size) * hidden;
  return elements;
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

std::uint64_t ParameterCount::Touched(const Passes& passes) const {
  std::uint64_t touched = passes.distinct_experts * expert_parameters_each();
  if (passes.decoder) touched += dense() - encoder_dense;
  if (passes.encoder) touched += encoder_dense + (passes.decoder ? 0 : part(ModelPart::kEmbedding));
  return touched;
}

ParameterCount CountParameters(const ModelConfig& config) {
  ParameterCount count;
  std::uint64_t idle_experts = 0;  // parameters of those that a token does not visit
  const auto add = [&](const std::vector<TensorSpec>& specs) {
    for (const TensorSpec& spec : specs) count.by_part[static_cast<std::size_t>(spec.part)] += spec.elements();
  };
  add(OuterTensors(config));
  if (config.has_encoder()) count.encoder_dense = static_cast<std::uint64_t>(config.hidden);
  for (int layer = 0; layer < config.num_layers(); ++layer) {
    const std::vector<TensorSpec> tensors = LayerTensors(config, layer);
    add(tensors);
    if (layer < config.encoder_layers) count.encoder_dense += Sum(tensors);
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
  count.checkpoint = CountElements(config);
  return count;
}

}  // namespace moe
